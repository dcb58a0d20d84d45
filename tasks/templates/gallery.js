// All groups: which of them are shown, and in which order.

const MAX_GROUPS_SHOWN = 50_000; // a browser knows no higher element

let groups = null; // columns, one value per group: see report_data.group_columns

const keptIn = (group) => groups.images[group] - groups.removed[group];

/** The group that a row belongs to. */
function groupOf(row) {
  let [low, high] = [0, groups.first.length];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (groups.first[middle] <= row) low = middle;
    else high = middle;
  }
  return low;
}

const gallery = {
  order: [],
  list: new VirtualList(field("list"), null, (place) => groupElement(gallery.order[place], place)),

  async start() {
    try {
      groups = await load("groups");
    } catch {
      return; // the page alone: it says where its pictures are
    }
    field("missing")?.remove();
    field("tools").hidden = groups.first.length === 0;
    field("partition").append(
      ...groups.partitions.map((name, number) =>
        make("option", { value: number }, name || "(no folder)"),
      ),
    );
    await this.refresh();
    await review.restore();
  },

  /** Shows the groups that the tools ask for, in the order that they ask for. */
  async refresh() {
    const shown = await this.filtered();
    if (shown === null) return; // somebody typed on
    const by = {
      size: (a, b) => a - b,
      risk: (a, b) => (groups.weakest[a] ?? 101) - (groups.weakest[b] ?? 101) || a - b,
      partition: (a, b) => groups.partition[a] - groups.partition[b] || a - b,
    };
    this.order = shown.sort(by[field("sort").value]).slice(0, MAX_GROUPS_SHOWN);
    const all = counted(groups.first.length);
    const found = shown.length === groups.first.length ? "" : `${counted(shown.length)} of `;
    const isCut = shown.length > this.order.length;
    const cut = isCut ? `, the first ${counted(this.order.length)} shown` : "";
    field("count").textContent = `${found}${all} groups${cut}`;
    this.list.show(this.order.length);
  },

  async filtered() {
    const text = field("filter").value.toLowerCase();
    const partition = field("partition").value;
    const marked = field("marked").checked ? await this.marked() : null;
    const paths = text === "" ? null : await this.lowerPaths();
    if (text !== field("filter").value.toLowerCase()) return null;
    const names = groups.partitions.map((name) => name.toLowerCase().includes(text));
    return [...groups.first.keys()].filter(
      (group) =>
        (partition === "" || groups.partition[group] === Number(partition)) &&
        (marked === null || marked.has(group)) &&
        (text === "" || names[groups.partition[group]] || this.hasPath(paths, group, text)),
    );
  },

  async lowerPaths() {
    if (!this.paths) {
      field("count").textContent = "reading the paths…";
      this.paths = (await loadPaths()).map((path) => path.toLowerCase());
    }
    return this.paths;
  },

  hasPath(paths, group, text) {
    const [first, end] = [groups.first[group], groups.first[group] + groups.images[group]];
    for (let row = first; row < end; row++) if (paths[row].includes(text)) return true;
    return false;
  },

  /** The groups that a person has marked something in. */
  async marked() {
    const paths = await loadPaths();
    const clusters = new Map(groups.cluster_id.map((id, group) => [id, group]));
    const found = new Set();
    for (const target of review.choices.keys()) {
      if (clusters.has(target)) found.add(clusters.get(target));
    }
    paths.forEach((path, row) => {
      if (review.choices.has(page.folder + path)) found.add(groupOf(row));
    });
    return found;
  },
};

let typing = 0;
field("filter").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => gallery.refresh().catch(complain), 150);
});
for (const id of ["sort", "partition", "marked"]) {
  field(id).addEventListener("change", () => gallery.refresh().catch(complain));
}
window.addEventListener("resize", () => whole.dialog.open && whole.show());
