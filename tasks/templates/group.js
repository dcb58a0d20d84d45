// One group as a strip of cards, and all images of a group as a grid.

const MAX_KEEPERS_SHOWN = 4;
const MAX_REMOVED_SHOWN = 12;
const WAIT_WHILE_SCROLLING_MS = 80;

function groupElement(group, place) {
  const id = groups.cluster_id[group];
  const header = make(
    "header",
    {},
    make("h3", {}, `Group ${id}`),
    groupAbout(group),
    make("span", { className: "actions" }, ...groupButtons()),
  );
  const cards = groupCards(group);
  const strip = make("div", { className: "strip" }, ...cards);
  if (cards.length < groups.images[group]) {
    const text = `All ${counted(groups.images[group])} images`;
    strip.append(button("whole", text, { className: "more" }));
  }
  const made = make("div", {}, make("article", { className: "group" }, header, strip));
  made.dataset.group = group;
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", `Group ${id}, ${place + 1} of ${gallery.order.length}`);
  showGroupMarks(made);
  fillSoon(cards);
  return made;
}

function groupAbout(group) {
  const images = make("b", {}, `${counted(groups.images[group])} images`);
  const about = make("span", { className: "about" }, images);
  about.append(`: ${counted(keptIn(group))} kept, ${counted(groups.removed[group])} removed`);
  const weakest = groups.weakest[group];
  if (weakest !== null) about.append(", weakest ", make("b", {}, percent(weakest)));
  const partition = groups.partitions[groups.partition[group]];
  if (partition) about.append(" · ", make("bdi", {}, partition));
  return about;
}

function groupButtons() {
  return [
    ["keep all", "Keep all", "no image of this group goes"],
    ["remove all", "Remove all", "one image of this group is enough"],
  ].map(([choice, text, title]) => {
    const mark = button("mark-group", text, { title });
    mark.dataset.groupChoice = choice;
    return mark;
  });
}

/** Cards of the first keepers, and of what goes with the weakest similarity. */
function groupCards(group) {
  const first = groups.first[group];
  const numKeepers = Math.min(keptIn(group), MAX_KEEPERS_SHOWN);
  const numRemoved = Math.min(groups.removed[group], MAX_REMOVED_SHOWN);
  const keepers = Array.from({ length: numKeepers }, (_, at) => card(first + at));
  const removed = Array.from({ length: numRemoved }, (_, at) => card(first + keptIn(group) + at));
  return [...keepers, ...removed];
}

let scrolledAt = -Infinity;
const noteScrolling = () => (scrolledAt = performance.now());
document.addEventListener("scroll", noteScrolling, { capture: true, passive: true });

/** Fills cards; while somebody scrolls only those that are still in the page after a moment. */
function fillSoon(cards) {
  const isScrolling = performance.now() - scrolledAt < 2 * WAIT_WHILE_SCROLLING_MS;
  const fill = (made) =>
    loadRow(Number(made.dataset.row))
      .then((row) => fillCard(made, row))
      .catch(complain);
  setTimeout(
    () => cards.filter((made) => made.isConnected).forEach(fill),
    isScrolling ? WAIT_WHILE_SCROLLING_MS : 0,
  );
}

function showGroupMarks(made) {
  const choice = review.of(groups.cluster_id[made.dataset.group]);
  for (const mark of made.querySelectorAll("[data-group-choice]")) {
    mark.setAttribute("aria-pressed", mark.dataset.groupChoice === choice);
  }
}

const whole = {
  dialog: field("whole"),
  list: new VirtualList(field("whole-list"), field("whole"), (place) => {
    const made = card(whole.first + place);
    fillSoon([made]);
    return make("div", {}, made);
  }),

  open(group) {
    this.group = group;
    this.first = groups.first[group];
    field("whole-title").textContent =
      `Group ${groups.cluster_id[group]}: ${counted(groups.images[group])} images, keepers first`;
    this.dialog.showModal();
    this.show();
    this.dialog.focus();
  },

  show() {
    const columns = Math.max(1, Math.floor(field("whole-list").clientWidth / 180));
    this.list.show(groups.images[this.group], columns);
  },
};
