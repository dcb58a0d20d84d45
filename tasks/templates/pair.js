// An image beside its keeper, large.

const pair = {
  dialog: field("pair"),
  pictures: field("pair-pictures"),
  row: null,
  keeper: null,

  /** Shows a removed image beside its keeper, or a kept one alone. */
  async open(number) {
    this.asked = number;
    const row = await loadRow(number);
    const keeper = row.keeper === null ? null : await loadRow(row.keeper);
    if (this.asked !== number) return; // somebody has gone on meanwhile
    Object.assign(this, { row, keeper });
    if (!this.dialog.open) this.dialog.showModal();
    const group = groupOf(number);
    const id = groups.cluster_id[group];
    const place = number - groups.first[group] - keptIn(group) + 1;
    const places = `${counted(place)} of ${counted(groups.removed[group])}`;
    field("pair-title").textContent = keeper
      ? `${percent(row.similarity)} alike · ${row.reason} · ${places} in group ${id}`
      : `kept · group ${id}`;
    const shown = keeper ? [keeper, row] : [row];
    const isFlicking = keeper !== null && this.pictures.classList.contains("flicking");
    this.pictures.replaceChildren(...shown.map((one) => large(one)));
    this.pictures.classList.toggle("alone", !keeper);
    field("pair-facts").replaceChildren(facts(shown));
    this.front(isFlicking ? "remove" : null);
    this.showMarks();
    this.dialog.focus();
  },

  /** Puts one of the two in front of the other; null puts them side by side. */
  front(action) {
    this.shown = action;
    this.pictures.classList.toggle("flicking", action !== null);
    for (const part of this.dialog.querySelectorAll("figure, th, td")) {
      part.classList.toggle("front", action !== null && part.dataset.action === action);
    }
  },

  flick() {
    if (this.keeper) this.front(this.shown === "remove" ? "keep" : "remove");
  },

  /** Goes on to the next removed image, from group to group. */
  async move(step) {
    const group = groupOf(this.row.number);
    const first = groups.first[group] + keptIn(group);
    const wanted = Math.max(this.row.number, first - (step > 0 ? 1 : 0)) + step;
    const end = groups.first[group] + groups.images[group];
    if (first <= wanted && wanted < end) return this.open(wanted);
    let place = gallery.order.indexOf(group) + step;
    while (groups.removed[gallery.order[place]] === 0) place += step;
    const next = gallery.order[place];
    if (next === undefined) return say(`This is the ${step > 0 ? "last" : "first"} one.`);
    const from = groups.first[next];
    return this.open(step > 0 ? from + keptIn(next) : from + groups.images[next] - 1);
  },

  mark(choice) {
    if (this.keeper) review.toggle(this.row.url, choice);
  },

  showMarks() {
    if (!this.row) return;
    for (const mark of this.dialog.querySelectorAll("[data-choice]")) {
      mark.disabled = !this.keeper;
      mark.setAttribute("aria-pressed", review.of(this.row.url) === mark.dataset.choice);
    }
    const forAll = review.of(groups.cluster_id[groupOf(this.row.number)]);
    field("pair-note").textContent = forAll ? `The whole group: ${forAll}.` : "";
  },
};

/** Where an image itself can be seen from here; null when only its thumbnail can. */
function originalUrl(row) {
  if (review.isServed) return `/original?url=${encodeURIComponent(row.url)}`;
  if (location.protocol === "file:" && row.url.startsWith("file://")) {
    const path = row.url.slice("file://".length);
    return `file://${path.split("/").map(encodeURIComponent).join("/")}`;
  }
  return null;
}

function large(row) {
  const image = make("img", { alt: nameOf(row) });
  const note = make("span", { className: "note" });
  const showThumbnail = (why) => {
    note.textContent = why;
    image.onerror = null;
    if (row.thumbnail) image.src = row.thumbnail;
  };
  const original = originalUrl(row);
  if (original) {
    image.onerror = () => showThumbnail(" · the image itself cannot be shown here: its thumbnail");
    image.src = original;
  } else showThumbnail(" · its thumbnail; dedup serve shows the image itself");
  const who = row.action === "keep" ? "Keeper" : "Goes";
  const made = make(
    "figure",
    { className: row.action },
    make("figcaption", {}, make("b", {}, who), note),
    make("div", { className: "frame" }, image),
  );
  made.dataset.action = row.action;
  return made;
}

/** What is known of one image or two, line by line. */
function facts(rows) {
  const lines = [
    ["path", (row) => make("bdi", {}, row.path)],
    ["taken", (row) => `${row.captured_at} UTC`],
    ["size", (row) => `${counted(row.size_bytes)} bytes`],
    ["pixels", (row) => `${row.width} × ${row.height}`],
    ["sharpness", (row) => String(row.sharpness)],
  ];
  const body = lines.map(([name, value]) => {
    const cells = rows.map((row) => {
      const cell = make("td", {}, value(row));
      cell.dataset.action = row.action;
      return cell;
    });
    return make("tr", {}, make("th", { scope: "row" }, name), ...cells);
  });
  return make("table", {}, make("tbody", {}, ...body));
}
