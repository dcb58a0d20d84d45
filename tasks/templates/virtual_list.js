/** A long list of equally high items, of which only those near the window are in the page. */
class VirtualList {
  /**
   * @param list element that holds the items; its style --item-height is the height of each
   * @param scroller what scrolls it: an element, or null for the window
   * @param render makes the element of the item with a given number
   */
  constructor(list, scroller, render) {
    Object.assign(this, { list, scroller, render, length: 0, columns: 1, items: new Map() });
    let isPlanned = false;
    const plan = () => {
      if (isPlanned) return;
      isPlanned = true;
      requestAnimationFrame(() => {
        isPlanned = false;
        this.update();
      });
    };
    (scroller ?? window).addEventListener("scroll", plan, { passive: true });
    window.addEventListener("resize", plan);
  }

  /** Shows another list. */
  show(length, columns = 1) {
    this.length = length;
    this.columns = columns;
    this.list.replaceChildren();
    this.items.clear();
    this.update();
  }

  update() {
    const height = parseFloat(getComputedStyle(this.list).getPropertyValue("--item-height"));
    this.list.style.height = `${Math.ceil(this.length / this.columns) * height}px`;
    const top = this.list.getBoundingClientRect().top;
    const view = this.scroller?.getBoundingClientRect() ?? { top: 0, bottom: innerHeight };
    if (!this.list.offsetParent) return;
    const first = Math.max(0, (Math.floor((view.top - top) / height) - 1) * this.columns);
    const end = (Math.ceil((view.bottom - top) / height) + 2) * this.columns;
    const last = Math.min(this.length, end);
    for (const [number, item] of this.items) {
      const isNear = first <= number && number < last;
      // Whoever walks through the list with the keyboard must not lose the focus.
      if (isNear || item.contains(document.activeElement)) continue;
      item.remove();
      this.items.delete(number);
    }
    for (let number = first; number < last; number++) {
      if (!this.items.has(number)) this.insert(number, height);
    }
  }

  insert(number, height) {
    const item = this.render(number);
    item.classList.add("item");
    item.style.top = `${Math.floor(number / this.columns) * height}px`;
    item.style.left = `${((number % this.columns) * 100) / this.columns}%`;
    item.style.width = `${100 / this.columns}%`;
    this.items.set(number, item);
    // In the order of the list, so that the tab key walks through it.
    const following = [...this.items.keys()].filter((other) => other > number);
    this.list.insertBefore(item, following.length ? this.items.get(Math.min(...following)) : null);
  }

  /** Scrolls so far that an item is in the middle, and gives its element. */
  reveal(number) {
    if (!this.items.has(number)) this.insertAt(number);
    this.items.get(number).scrollIntoView({ block: "nearest" });
    this.update();
    return this.items.get(number);
  }

  insertAt(number) {
    const height = parseFloat(getComputedStyle(this.list).getPropertyValue("--item-height"));
    this.insert(number, height);
  }
}
