"use strict";

// Loads the data around the page. A page on a disk may not fetch anything, so each piece is a
// script that calls one of these functions with its content.

const page = document.body.dataset;
const field = (id) => document.getElementById(id);
const ROWS_PER_SCRIPT = Number(page.rowsPerScript);
const MAX_SCRIPTS_KEPT = 200;

const arrivals = new Map(); // name of an expected script: what to do with its content
const loaded = new Map(); // name of a script: a promise of its content, the latest used last

function arrive(name, content) {
  arrivals.get(name)?.(content);
  arrivals.delete(name);
}

window.report = {
  groups: (groups) => arrive("groups", groups),
  paths: (number, paths) => arrive(numbered("paths", number), paths),
  rows: (number, rows) => arrive(numbered("rows", number), rows),
};

function numbered(name, number) {
  return `${name}-${String(number).padStart(6, "0")}`;
}

function load(name) {
  const known = loaded.get(name) ?? request(name);
  loaded.delete(name);
  loaded.set(name, known);
  return known;
}

function request(name) {
  const content = new Promise((resolve, reject) => {
    const script = document.createElement("script");
    arrivals.set(name, resolve);
    script.src = `data/${name}.js`;
    script.onload = () => script.remove();
    script.onerror = () => {
      script.remove();
      loaded.delete(name);
      reject(new Error(`could not load ${script.src}`));
    };
    document.head.append(script);
  });
  const rows = [...loaded.keys()].filter((other) => other.startsWith("rows-"));
  // Thumbnails of everything that was ever scrolled by would fill gigabytes.
  if (rows.length > MAX_SCRIPTS_KEPT) loaded.delete(rows[0]);
  return content;
}

/** One image of a group: what data/rows-*.js says of it, with its number and its URL. */
async function loadRow(number) {
  const rows = await load(numbered("rows", Math.floor(number / ROWS_PER_SCRIPT)));
  const row = rows[number % ROWS_PER_SCRIPT];
  const url = row.is_elsewhere ? row.path : page.folder + row.path;
  return { ...row, number, url };
}

/** The paths of all rows, loaded piece by piece. */
async function loadPaths() {
  const pieces = [];
  for (let number = 0; number < Number(page.pathScripts); number++) {
    pieces.push(await load(numbered("paths", number)));
  }
  return pieces.flat();
}
