// What buttons and keys do.

const actions = {
  open: (target) => pair.open(rowAt(target)),
  mark: (target) => mark(target, target.dataset.choice),
  "mark-group": (target) => markGroup(target, target.dataset.groupChoice),
  whole: (target) => whole.open(groupAt(target)),
  previous: () => pair.move(-1),
  next: () => pair.move(1),
  flick: () => pair.flick(),
  beside: () => pair.front(null),
  close: (target) => target.closest("dialog").close(),
  keys: () => showKeys(),
  save: () => review.save(),
  clear: () => confirm(`Forget ${review.choices.size} marks?`) && review.clear(),
};

const rowAt = (element) => Number(element.closest("[data-row]").dataset.row);

function groupAt(element) {
  const group = element.closest("[data-group]")?.dataset.group;
  if (group !== undefined) return Number(group);
  if (pair.dialog.open) return groupOf(pair.row.number);
  return element.closest("[data-row]") ? groupOf(rowAt(element)) : null;
}

function mark(element, choice) {
  if (pair.dialog.open) return pair.mark(choice);
  const row = element.closest("[data-row]")?.row;
  if (row?.action === "remove") review.toggle(row.url, choice);
}

function markGroup(element, choice) {
  const group = groupAt(element);
  if (group !== null) review.toggle(groups.cluster_id[group], choice);
}

document.addEventListener("click", (event) => {
  const target = event.target.closest("[data-do]");
  if (!target) return;
  Promise.resolve(actions[target.dataset.do](target)).catch(complain);
  // After a click the keys are the dialog's again; who came with the tab key stays where he is.
  if (event.detail > 0) target.closest("dialog")?.focus();
});

const CHOICES = { d: "not a duplicate", k: "keep this one" };
const GROUP_CHOICES = { a: "keep all", r: "remove all" };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select")) return;
  const done = keyPressed(event.key, event.target);
  if (done !== false) event.preventDefault();
  Promise.resolve(done).catch(complain);
});

/** Does what a key stands for; false when it stands for nothing here. */
function keyPressed(key, target) {
  if (key === "?") return showKeys();
  if (groups === null || field("keys").open) return false;
  if (key in GROUP_CHOICES) return markGroup(target, GROUP_CHOICES[key]);
  if (key === "s" && review.choices.size) return review.save();
  if (pair.dialog.open) return keyInPair(key, target);
  if (key in CHOICES) return mark(target, CHOICES[key]);
  if (key === "/" && !whole.dialog.open) return field("filter").focus();
  const made = target.closest(".card");
  if (!made) return false;
  if (key === "ArrowRight") return focusCard(made.nextElementSibling ?? neighbor(made, 1));
  if (key === "ArrowLeft") return focusCard(made.previousElementSibling ?? neighbor(made, -1));
  if (key === "ArrowDown") return moveGroup(made, 1);
  if (key === "ArrowUp") return moveGroup(made, -1);
  return false;
}

function showKeys() {
  if (!field("keys").open) field("keys").showModal();
  field("keys").focus();
}

function keyInPair(key, target) {
  if (key === " ") return target.closest("button") ? false : pair.flick();
  if (key === "ArrowRight") return pair.move(1);
  if (key === "ArrowLeft") return pair.move(-1);
  if (key in CHOICES) return pair.mark(CHOICES[key]);
  return false;
}

function focusCard(element) {
  (element?.querySelector("button") ?? element)?.focus();
}

/** The card after this one where all images of a group are shown. */
function neighbor(made, step) {
  const item = made.closest("#whole-list .item");
  return step > 0 ? item?.nextElementSibling : item?.previousElementSibling;
}

function moveGroup(made, step) {
  const group = made.closest("[data-group]");
  if (!group) return;
  const place = gallery.order.indexOf(Number(group.dataset.group)) + step;
  if (place < 0 || place >= gallery.order.length) return;
  focusCard(gallery.list.reveal(place).querySelector(".card"));
}

pair.dialog.addEventListener("close", () => {
  if (!pair.row || whole.dialog.open) return;
  const place = gallery.order.indexOf(groupOf(pair.row.number));
  if (place < 0) return;
  const group = gallery.list.reveal(place);
  focusCard(group.querySelector(`[data-row="${pair.row.number}"]`) ?? group.querySelector(".card"));
});
