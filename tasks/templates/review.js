/** What a person has chosen: kept in this browser under the manifest's digest. */
const review = {
  choices: new Map(), // URL of an image or id of a cluster: the choice, as review.json has it
  isSaved: true,
  key: `image-dedup review ${page.manifestDigest}`,
  isServed: document.querySelector('meta[name="dedup-server"]') !== null,

  of(target) {
    return this.choices.get(target)?.choice;
  },

  /** Chooses something for an image or a cluster; the same choice again takes it back. */
  toggle(target, choice) {
    if (this.of(target) === choice) this.choices.delete(target);
    else {
      const about = typeof target === "number" ? { cluster_id: target } : { url: target };
      this.choices.set(target, { choice, ...about });
    }
    this.changed(false);
  },

  clear() {
    this.choices.clear();
    this.changed(false);
  },

  changed(isSaved) {
    this.isSaved = isSaved;
    const kept = { isSaved, choices: [...this.choices.values()] };
    try {
      localStorage.setItem(this.key, JSON.stringify(kept));
    } catch {
      say("This browser keeps nothing: save review.json before you close the page.");
    }
    document.dispatchEvent(new Event("reviewed"));
  },

  take(choices) {
    const targets = choices.map((choice) => [choice.url ?? choice.cluster_id, choice]);
    this.choices = new Map(targets);
  },

  /** Takes up the choices of last time: unsaved ones of this browser, else those of the server. */
  async restore() {
    const kept = this.kept();
    this.take(kept?.choices ?? []);
    this.isSaved = kept?.isSaved ?? true;
    document.dispatchEvent(new Event("reviewed"));
    if (!this.isServed || !this.isSaved) return;
    const answer = await fetch("review.json");
    if (answer.ok) this.take((await answer.json()).choices ?? []);
    document.dispatchEvent(new Event("reviewed"));
  },

  kept() {
    try {
      return JSON.parse(localStorage.getItem(this.key));
    } catch {
      return null;
    }
  },

  document() {
    const head = {
      format: "image-dedup review 1",
      run_id: page.runId,
      manifest_digest: page.manifestDigest,
    };
    return JSON.stringify({ ...head, choices: [...this.choices.values()] }, null, 1) + "\n";
  },

  async save() {
    const content = new Blob([this.document()], { type: "application/json" });
    if (this.isServed) {
      const answer = await fetch("review.json", { method: "PUT", body: content });
      if (!answer.ok) return say(`Not saved: ${answer.status} ${await answer.text()}`);
      say("Saved beside the manifest.");
    } else {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(content);
      link.download = "review.json";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    }
    this.changed(true);
  },
};

// Whatever could not be loaded or saved: a person must know, and may try again. (From a disk no
// browser tells of errors that nobody caught.)
function complain(error) {
  say(error.message);
}

/** Says something in passing. */
function say(text) {
  const said = field("said");
  said.textContent = text;
  said.hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (said.hidden = true), 6_000);
}
