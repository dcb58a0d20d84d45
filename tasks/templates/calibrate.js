"use strict";

// Asks about one pair after the other. The server decides what is asked; this page only shows it.

const element = (id) => document.getElementById(id);
const KEYS = { y: "same", n: "different", u: "unsure", b: "back", Backspace: "back" };
const TITLE = element("title").textContent;
let state = null;
let isBusy = false;

async function load() {
  await show(await fetch("state"));
}

async function answer(said) {
  if (isBusy || !state) return;
  const [question] = state.questions;
  if (!question && said !== "back" && said !== "done") return;
  isBusy = true;
  const about = question ? { a: question.a.url, b: question.b.url } : {};
  try {
    await show(await fetch("answer", { method: "PUT", body: JSON.stringify({ said, ...about }) }));
    if (said === "done") end();
  } catch {
    problem("The command does not answer any more. Start it again: it goes on where you were.");
  } finally {
    isBusy = false;
  }
}

async function show(response) {
  if (!response.ok) return problem(`${response.status}: ${await response.text()}`);
  element("problem").hidden = true;
  state = await response.json();
  element("progress").value = state.num_answers;
  element("count").textContent = `${state.num_answers} of ${state.num_pairs}`;
  element("title").textContent = state.result ? "What follows from your answers" : TITLE;
  element("hint").hidden = state.result !== null;
  element("question").hidden = state.questions.length === 0;
  element("result").hidden = state.result === null;
  if (state.questions.length) showQuestion(...state.questions);
  if (state.result) showResult(state.result);
}

function showQuestion(question, next) {
  flick(false);
  for (const name of ["a", "b"]) {
    const side = element(`side-${name}`);
    side.querySelector("img").src = question[name].src;
    side.querySelector("bdi").textContent = question[name].path;
    side.title = question[name].path;
  }
  element("back").disabled = state.num_answers === 0;
  // Loaded ahead, so that the next pair is there at once.
  for (const side of next ? [next.a, next.b] : []) new Image().src = side.src;
}

function showResult(result) {
  const rows = result.rows.map(([label, value]) => {
    const row = document.createElement("tr");
    for (const text of [label, value]) row.insertCell().textContent = text;
    return row;
  });
  element("rows").replaceChildren(...rows);
  element("profile").hidden = result.profile === "";
  element("lines").textContent = result.profile;
}

/** Shows one of the two images in the place of both; without a side, both beside each other. */
function flick(side) {
  element("sides").classList.toggle("flicking", Boolean(side));
  element("flick").setAttribute("aria-pressed", String(Boolean(side)));
  for (const name of ["a", "b"]) element(`side-${name}`).classList.toggle("front", name === side);
}

function flickOn() {
  flick(element("side-a").classList.contains("front") ? "b" : "a");
}

function end() {
  element("result").hidden = true;
  element("ended").hidden = false;
  state = null;
}

function problem(text) {
  element("problem").textContent = text;
  element("problem").hidden = false;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "f" || event.key === " ") flickOn();
  else if (event.key === "Escape") flick(false);
  else if (event.key === "Enter" && state?.result) answer("done");
  else if (KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]) {
    answer(KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]);
  } else return;
  event.preventDefault();
});
for (const said of ["same", "different", "unsure", "back", "done"]) {
  element(said).addEventListener("click", () => answer(said));
}
element("back-again").addEventListener("click", () => answer("back"));
element("flick").addEventListener("click", flickOn);
load().catch(() => problem("The command does not answer any more."));
