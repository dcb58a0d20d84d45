// Makes the elements that show images. Names are strangers' text: they are only ever set as text.

/** Makes an element: make("b", { className: "x" }, "text", child). */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function button(action, text, properties = {}) {
  const made = make("button", { type: "button", ...properties }, text);
  made.dataset.do = action;
  return made;
}

function counted(number) {
  return number.toLocaleString("en");
}

function percent(similarity) {
  return `${similarity.toFixed(2)} %`;
}

function nameOf(row) {
  return row.path.slice(row.path.lastIndexOf("/") + 1);
}

/** A card that is filled when its row has been loaded. */
function card(number) {
  const made = make("figure", { className: "card" }, make("button", { className: "picture" }));
  made.dataset.row = number;
  return made;
}

function fillCard(made, row) {
  const isKept = row.action === "keep";
  const kept = row.reason === "keeper" ? ["keeper", ""] : ["kept", row.reason];
  const [said, reason] = isKept ? kept : [percent(row.similarity), row.reason];
  const picture = button("open", "", { className: "picture" });
  picture.setAttribute("aria-label", `${said}, ${nameOf(row)}`);
  picture.append(
    row.thumbnail
      ? make("img", { src: row.thumbnail, alt: "", decoding: "async" })
      : make("span", {}, "no picture"),
  );
  const caption = make(
    "figcaption",
    {},
    make(
      "span",
      { className: "say" },
      make("b", {}, said),
      make("span", {}, reason),
    ),
    make("bdi", { className: "name", title: row.path }, nameOf(row)),
    make("span", { className: "name" }, row.captured_at.slice(0, 19)),
  );
  made.row = row;
  made.classList.add(row.action);
  made.replaceChildren(picture, caption);
  if (isKept) {
    const size = `${row.width} × ${row.height}, ${counted(Math.ceil(row.size_bytes / 1000))} kB`;
    caption.append(make("span", { className: "name" }, size));
  } else {
    const marks = [
      ["not a duplicate", "Different"],
      ["keep this one", "Keep this"],
    ].map(([choice, text]) => {
      const mark = button("mark", text, { title: choice });
      mark.dataset.choice = choice;
      mark.setAttribute("aria-label", `${choice}: ${nameOf(row)}`);
      return mark;
    });
    made.append(make("div", { className: "marks" }, ...marks));
  }
  showMarks(made);
}

/** Shows on a card what was chosen for its image. */
function showMarks(made) {
  if (!made.row) return;
  const choice = review.of(made.row.url);
  const forAll = review.of(groups.cluster_id[groupOf(made.row.number)]);
  const staysWithAll = forAll === "keep all" && made.row.action === "remove";
  made.classList.toggle("stays", choice !== undefined || staysWithAll);
  for (const mark of made.querySelectorAll("[data-choice]")) {
    mark.setAttribute("aria-pressed", mark.dataset.choice === choice);
  }
}
