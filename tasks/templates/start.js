// Starts the page.

document.addEventListener("reviewed", () => {
  const number = review.choices.size;
  field("review").hidden = number === 0;
  const marks = number === 1 ? "mark" : "marks";
  field("marks").textContent = `${counted(number)} ${marks}${review.isSaved ? ", saved" : ""}`;
  if (number === 0 && field("marked").checked) {
    field("marked").checked = false;
    gallery.refresh().catch(complain);
  }
  document.querySelectorAll(".card").forEach(showMarks);
  document.querySelectorAll("[data-group]").forEach(showGroupMarks);
  pair.showMarks();
});

/** Shows the part of the page that its address names. */
function showPart() {
  const parts = [...document.querySelectorAll("main > section")];
  const chosen = parts.find((part) => `#${part.id}` === location.hash) ?? parts[0];
  for (const part of parts) part.hidden = part !== chosen;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${chosen.id}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  gallery.list.update();
}

document.body.classList.add("scripted");
document.querySelector("nav button").hidden = false;
window.addEventListener("hashchange", showPart);
showPart();
gallery.start().catch(complain);
