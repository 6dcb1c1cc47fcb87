/* The explorer of explained texts: the custom element <explained-texts>, wherever it is put into a page.

   Its data are JSON in a <script type="application/json"> within it; __init__.py of this folder writes both. Every text
   of the data becomes a text node or an attribute, never HTML. Attributes of the element:

   address  the state (text, token, quantity) is kept in the page's location.hash
   branch   candidates are buttons; one that is clicked is told by the event "explorer-branch", whose detail has
            group, text, position and token

   Whatever is selected is told by the event "explorer-select": group, text, position, pinned. */
(() => {
  "use strict";
  if (customElements.get("explained-texts")) return;

  const QUANTITIES = {
    probability: "Probability under the model",
    penalty: "Penalty",
    margin: "Margin over greedy search",
    disagreement: "Disagreement of readers",
  };
  const NAMES = { " ": "space", "\n": "line end", "\t": "tab", "": "nothing" };

  /** Make an element; children are nodes or strings, and attributes that are null are left out. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === false) continue;
      if (name === "style") Object.entries(value).forEach(([key, of]) => element.style.setProperty(key, of));
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  const percent = (p) => (p >= 0.1 ? (100 * p).toFixed(0) : p >= 0.001 ? (100 * p).toFixed(1) : p > 0 ? "<0.1" : "0") + "%";
  const number = (value) => (value === null || value === undefined ? "–" : Math.abs(value) >= 1e21 ? (value < 0 ? "−∞" : "∞") : Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(2).replace("-", "−"));
  const visible = (text) => text.replace(/^ | $/g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
  const spoken = (text) => NAMES[text] ?? text.replace(/\n/g, " line end ").trim();

  /** One text, with the elements of its tokens. */
  class Text {
    constructor(data, group, index) {
      Object.assign(this, data, { group, index });
      this.plain = data.steps === undefined;
      if (this.plain) return;
      this.first = this.tokens.length - this.steps.length;
      this.steps = this.steps.map((step) => this.read(step));
    }

    /** A step with named fields, from the rows of the file. */
    read(step) {
      const candidates = step.candidates.map(([token, text, score, probability, logProbs, parts, repeats]) => ({
        token, text: text ?? "#" + token, score, probability, parts, repeats,
        readers: logProbs.map((value) => (value === null ? 0 : Math.exp(value))), logProbs,
      }));
      return { ...step, candidates, chosen: candidates[0], greedy: candidates.find((c) => c.token === step.greedy) };
    }

    /** The largest finite value of a quantity, of margins whatever their sign. */
    most(quantity) {
      const values = this.steps.map((step) => this.value(step, quantity)).filter(Number.isFinite);
      return Math.max(0, ...(quantity === "margin" ? values.map(Math.abs) : values));
    }

    value(step, quantity) {
      if (quantity === "probability") return step.chosen.readers[0];
      if (quantity === "penalty") return step.chosen.parts.penalty ?? null;
      if (quantity === "disagreement") return step.divergences.length ? Math.max(...step.divergences) : null;
      if (step.greedy === step.chosen) return 0;
      if (step.chosen.score === null) return step.greedy.score === null ? null : -Infinity;
      return step.greedy.score === null ? Infinity : step.chosen.score - step.greedy.score;
    }

    /** The pieces of text that are shown, each of one token, or of those that make a character together. */
    *units() {
      let members = [];
      for (let position = 0; position < this.tokens.length; position++) {
        if (this.padding[position]) continue;
        members.push(position);
        const text = this.tokens[position];
        // A token of the prompt and one of the text are never one unit: the text begins where the prompt ends.
        if (text === "" && position + 1 < this.tokens.length && position + 1 !== this.first) continue;
        yield [members, text];
        members = [];
      }
    }
  }

  class ExplainedTexts extends HTMLElement {
    connectedCallback() {
      if (this.made) return;
      const source = this.querySelector("script[type='application/json']");
      if (!source) return;
      this.made = true;
      const data = JSON.parse(source.textContent);
      this.groups = data.groups.map((group, g) => group.texts.map((text, t) => new Text(text, g, t)));
      this.texts = this.groups.flat().filter((text) => !text.plain);
      this.quantities = Object.keys(QUANTITIES).filter((name) => this.texts.some((text) => text.steps.some((step) => this.valued(text, step, name))));
      this.quantity = this.quantities[0];
      this.state = null;
      this.pinned = false;
      this.replaceChildren(source);
      if (this.texts.length) this.append(this.controls());
      data.groups.forEach((group, g) => this.append(this.section(group, g)));
      this.panel = make("section", { class: "et-panel", "aria-label": "The selected token", hidden: true });
      this.status = make("p", { class: "et-hidden", role: "status", "aria-live": "polite" });
      this.append(this.panel, this.status);
      this.shade();
      if (this.hasAttribute("address")) {
        this.onHash = () => this.restore();
        addEventListener("hashchange", this.onHash);
        this.restore();
      }
    }

    disconnectedCallback() {
      if (this.onHash) removeEventListener("hashchange", this.onHash);
    }

    valued(text, step, quantity) {
      const value = text.value(step, quantity);
      return value !== null && (quantity !== "margin" || value !== 0);
    }

    // --- the page ---------------------------------------------------------------------------------------------------

    controls() {
      const fieldset = make("fieldset", { class: "et-controls" }, make("legend", {}, "Shade tokens by"));
      const group = "et-quantity-" + Math.random().toString(36).slice(2);
      for (const name of this.quantities) {
        const radio = make("input", { type: "radio", name: group, value: name });
        radio.checked = name === this.quantity;
        radio.addEventListener("change", () => this.choose(name));
        fieldset.append(make("label", {}, radio, QUANTITIES[name]));
      }
      this.radios = fieldset;
      this.scaleNote = make("span", { class: "et-scale" });
      return make("div", { class: "et-top" }, fieldset, make("p", { class: "et-legend" },
        this.scaleNote, make("span", { class: "et-left-sample" }, "underlined"), " greedy search would have gone on otherwise"));
    }

    section(group, g) {
      const cards = this.groups[g].map((text) => this.card(text, group.folds));
      const title = group.title === "" ? null : make("h2", { class: "et-prompt", dir: "auto" }, group.title);
      return make("section", { class: "et-group" }, title, make("div", { class: "et-cards" }, ...cards));
    }

    card(text, folds) {
      const [name, ...rest] = text.strategy.split("(");
      const heading = make("h3", {}, name, rest.length ? make("small", {}, rest.join("(").replace(/\)$/, "")) : null);
      if (text.plain) {
        return make("article", { class: "et-card" }, heading, make("p", { class: "et-text", dir: "auto" }, text.plain_text),
          make("p", { class: "et-note" }, "This strategy chooses among whole texts, and no token is explained."), this.note(text));
      }
      const left = text.steps.filter((step) => step.greedy !== step.chosen).length;
      const given = make("span", { class: "et-given" });
      const list = make("span", { role: "listbox", "aria-label": `Tokens of ${text.strategy}` });
      text.elements = [];
      for (const [members, piece] of text.units()) {
        const isNew = members[0] >= text.first;
        const element = make("span", isNew ? { class: "et-token", role: "option", tabindex: "-1", "aria-selected": "false" } : {}, piece);
        if (/\n/.test(piece)) element.classList.add("et-line-end");
        members.forEach((position) => (text.elements[position] = element));
        if (isNew) this.listen(element, text, members);
        (isNew ? list : given).append(element);
      }
      const prompt = folds ? make("details", { class: "et-given" }, make("summary", {}, "the prompt as the model reads it"), given) : given;
      if (text.steps.length) text.elements[text.first].tabIndex = 0;
      list.addEventListener("keydown", (event) => this.onKey(event, text));
      list.addEventListener("focusin", (event) => {
        const at = text.elements.indexOf(event.target);
        const shown = this.state && this.state.text === text && text.elements[this.state.position] === event.target;
        if (!shown && event.target.matches(":focus-visible")) this.select(text, at, this.pinned, true);
      });
      const count = `${left} of ${text.steps.length} tokens are not greedy search’s`;
      const next = make("button", { type: "button", class: "et-next", disabled: left === 0 }, "next");
      next.addEventListener("click", () => this.nextLeft(text));
      next.setAttribute("aria-label", `Next token of ${name} that is not greedy search’s`);
      return make("article", { class: "et-card" }, heading, make("div", { class: "et-text", dir: "auto" }, prompt, list), make("p", { class: "et-note" }, count + " ", next), this.note(text));
    }

    /** What the page has to say of a text, below it. */
    note(text) {
      return text.note ? make("p", { class: "et-note et-own" }, text.note) : null;
    }

    listen(element, text, members) {
      const last = members[members.length - 1];
      element.addEventListener("pointerenter", (event) => {
        if (!this.pinned && event.pointerType === "mouse") this.select(text, last);
      });
      element.addEventListener("click", () => {
        const again = this.pinned && this.state && this.state.text === text && members.includes(this.state.position);
        this.select(text, last, !again, true);
        element.focus();
      });
    }

    // --- selecting --------------------------------------------------------------------------------------------------

    onKey(event, text) {
      const last = text.tokens.length - 1;
      const position = this.state && this.state.text === text ? this.state.position : text.first - 1;
      const forward = getComputedStyle(event.currentTarget).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
      let to = null;
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") to = position + (event.key === forward ? 1 : -1);
      else if (event.key === "ArrowUp" || event.key === "ArrowDown") to = this.onOtherLine(text, Math.max(position, text.first), event.key === "ArrowDown");
      else if (event.key === "Home") to = text.first;
      else if (event.key === "End") to = last;
      else if (event.key === "Enter" || event.key === " ") {
        this.select(text, Math.max(position, text.first), !this.pinned, true);
        event.preventDefault();
        return;
      } else if (event.key === "Escape") {
        if (this.state) this.select(this.state.text, this.state.position, false, true);
        return;
      }
      if (to === null) return;
      event.preventDefault();
      to = Math.min(Math.max(to, text.first), last);
      this.select(text, to, this.pinned, true);
      text.elements[to].focus();
    }

    /** The position above or below, in the line next to that of a position. */
    onOtherLine(text, position, down) {
      const box = (at) => text.elements[at].getClientRects()[0];
      const here = box(position), x = (here.left + here.right) / 2;
      let found = position, line = null, distance = Infinity;
      for (let at = position + (down ? 1 : -1); at >= text.first && at < text.tokens.length; at += down ? 1 : -1) {
        const there = box(at);
        if (!there || Math.abs(there.top - here.top) < here.height / 2) continue;
        line ??= there.top;
        if (Math.abs(there.top - line) > here.height / 2) break;
        if (Math.abs((there.left + there.right) / 2 - x) < distance) {
          distance = Math.abs((there.left + there.right) / 2 - x);
          found = at;
        }
      }
      return found;
    }

    nextLeft(text) {
      const after = this.state && this.state.text === text ? this.state.position : -1;
      const left = text.steps.map((step, i) => [step, text.first + i]).filter(([step]) => step.greedy !== step.chosen).map(([, at]) => at);
      const to = left.find((at) => at > after) ?? left[0];
      this.select(text, to, true, true);
      text.elements[to].scrollIntoView({ block: "nearest" });
    }

    /** Show a token. `lasting` is false while the mouse passes: then nothing is told and the address stays. */
    select(text, position, pinned = false, lasting = false) {
      for (const marked of this.querySelectorAll(".et-current, .et-repeated")) {
        marked.classList.remove("et-current", "et-repeated");
        if (marked.hasAttribute("aria-selected")) marked.setAttribute("aria-selected", "false");
      }
      if (this.state && this.state.text !== text) this.state.text.elements[this.state.text.first].tabIndex = 0;
      text.elements.forEach((element) => element.tabIndex === 0 && (element.tabIndex = -1));
      this.state = { text, position };
      this.pinned = pinned;
      const element = text.elements[position], step = text.steps[position - text.first];
      element.classList.add("et-current");
      element.setAttribute("aria-selected", "true");
      element.tabIndex = 0;
      const repeated = (step.greedy === step.chosen ? step.chosen : step.greedy).repeats;
      if (repeated !== null && text.elements[repeated]) text.elements[repeated].classList.add("et-repeated");
      this.describe(text, position, step);
      this.place(element, lasting);
      if (lasting) {
        this.status.textContent = this.sentence(text, step);
        this.keep();
      }
      this.tell("explorer-select", { position, pinned });
    }

    /** Put the panel where it leaves the token to be read: on a small page below the text of a pinned one, else at the
        page's lower edge. `shown` scrolls both into view. */
    place(element, shown) {
      const card = element.closest(".et-card"), box = element.closest(".et-text");
      const below = this.pinned && matchMedia("(max-width: 40rem), (max-height: 30rem)").matches;
      for (const open of this.querySelectorAll(".et-open")) open.classList.remove("et-open");
      this.panel.classList.toggle("et-below", below);
      if (below) {
        card.classList.add("et-open");
        if (card.nextSibling !== this.panel) card.after(this.panel);
      } else if (this.panel.nextSibling !== this.status) this.status.before(this.panel);
      if (!shown) return;
      const token = element.getBoundingClientRect();
      if (!below) {
        if (token.bottom > this.panel.getBoundingClientRect().top) element.scrollIntoView({ block: "nearest" });
        return;
      }
      const frame = box.getBoundingClientRect();
      if (token.top < frame.top || token.bottom > frame.bottom) box.scrollTop += token.top - frame.top - frame.height / 2;
      const top = this.panel.getBoundingClientRect().top;
      if (card.getBoundingClientRect().top < 0 || top > 0.75 * innerHeight) card.scrollIntoView({ block: "start" });
    }

    /** Select nothing. */
    close() {
      const { text, position } = this.state;
      this.querySelectorAll(".et-open").forEach((card) => card.classList.remove("et-open"));
      text.elements[position].classList.remove("et-current");
      text.elements[position].setAttribute("aria-selected", "false");
      this.querySelectorAll(".et-repeated").forEach((element) => element.classList.remove("et-repeated"));
      this.panel.hidden = true;
      this.state = null;
      this.pinned = false;
      this.keep();
      text.elements[position].focus();
    }

    tell(name, detail) {
      const { text } = this.state;
      this.dispatchEvent(new CustomEvent(name, { bubbles: true, detail: { group: text.group, text: text.index, ...detail } }));
    }

    choose(quantity) {
      this.quantity = quantity;
      for (const radio of this.radios.querySelectorAll("input")) radio.checked = radio.value === quantity;
      this.shade();
      this.keep();
    }

    shade() {
      // Scores of several strategies have no common scale: a margin is shaded as a share of its text's largest.
      const common = this.quantity === "disagreement" ? Math.max(...this.texts.map((text) => text.most(this.quantity))) : 1;
      for (const text of this.texts) {
        const signed = this.quantity === "margin";
        const most = (signed ? text.most(this.quantity) : common) || 1;
        const shades = new Map();
        text.steps.forEach((step, i) => {
          const value = text.value(step, this.quantity);
          const share = value === null ? 0 : Math.min(Math.max(value / most, signed ? -1 : 0), 1);
          const element = text.elements[text.first + i];
          shades.set(element, [...(shades.get(element) ?? []), share]);
          element.classList.toggle("et-left", step.greedy !== step.chosen || (i > 0 && text.elements[text.first + i - 1] === element && element.classList.contains("et-left")));
          element.setAttribute("aria-label", this.sentence(text, step));
        });
        shades.forEach((of, element) => {
          const share = of.reduce((a, b) => a + b) / of.length;
          element.classList.toggle("et-lower", share < 0);
          element.style.setProperty("--et-share", Math.abs(share).toFixed(3));
        });
      }
      const ramp = (of) => make("span", { class: "et-ramp " + of, "aria-hidden": "true" });
      const end = this.quantity === "margin" ? "the text’s largest" : common === 1 ? "1" : number(common);
      const scale = this.querySelector(".et-token.et-lower") === null ? ["0 ", ramp(""), ` ${end} `]
        : ["below ", ramp("et-lower"), " 0 ", ramp(""), ` above greedy search’s token, up to ${end}; a sample may be below `];
      if (this.scaleNote) this.scaleNote.replaceChildren(...scale);
    }

    sentence(text, step) {
      const { chosen, greedy } = step;
      const value = text.value(step, this.quantity);
      const parts = [spoken(chosen.text), `probability ${percent(chosen.readers[0])}${chosen.score === null ? ", which the strategy excludes" : ""}`];
      if (this.quantity !== "probability" && Number.isFinite(value)) parts.push(`${QUANTITIES[this.quantity].toLowerCase()} ${number(value)}`);
      if (greedy !== chosen) parts.push(`greedy search: ${spoken(greedy.text)}, ${percent(greedy.readers[0])}${greedy.score === null ? ", which may not be chosen" : ""}`);
      return parts.join("; ");
    }

    // --- the panel --------------------------------------------------------------------------------------------------

    describe(text, position, step) {
      const { chosen, greedy } = step;
      const other = greedy !== chosen ? greedy : step.candidates[1] ?? null;
      const piece = (candidate) => make("bdi", { class: "et-piece" }, visible(candidate.text));
      const heading = make("h4", {}, piece(chosen));
      if (greedy !== chosen) heading.append(" instead of ", piece(greedy));
      const facts = [`token ${position}`, step.choices === 1 ? "the only token that could be chosen" : `${step.choices.toLocaleString("en")} could be chosen`];
      facts.push(...this.settings(step));
      const margin = text.value(step, "margin");
      if (margin < 0) facts.push(Number.isFinite(margin) ? "scores lower than greedy search’s token" : "excluded by the strategy");
      if (step.draft) facts.push(`draft ${step.draft}`);
      const unit = text.elements.filter((element) => element === text.elements[position]).length;
      if (unit > 1) facts.push(`part ${position - text.elements.indexOf(text.elements[position]) + 1} of ${unit} of a character`);
      if (this.pinned) facts.push("pinned");
      const close = make("button", { type: "button", class: "et-close", "aria-label": "Close" }, "✕");
      close.addEventListener("click", () => this.close());
      this.panel.hidden = false;
      this.panel.classList.toggle("et-pinned", this.pinned);
      this.panel.replaceChildren(
        make("header", {}, close, heading, make("p", { class: "et-facts" }, facts.join(" · "))),
        make("div", { class: "et-bars" },
          this.bars("Before: the model", step, (c) => c.readers[0]),
          this.bars(`After: ${text.strategy.split("(")[0]}`, step, (c) => (c.score === null ? null : c.probability))),
        other ? this.why(text, step, other, piece) : "");
    }

    /** What the strategy has set; of the layers that it chose among, those that were nearest to being chosen. */
    settings(step) {
      const facts = [], layers = [];
      for (const [name, value] of Object.entries(step.settings)) {
        const [measure, layer] = name.split(" of layer ");
        if (layer) layers.push([value, measure, layer]);
        else facts.push(`${name.replace("_", " ")} ${Number.isInteger(value) ? value : number(value)}`);
      }
      layers.sort((a, b) => b[0] - a[0]);
      const told = layers.slice(0, 3).map(([value, , layer]) => `layer ${layer} ${number(value)}`).join(", ");
      return layers.length ? [...facts, `largest ${layers[0][1]}: ${told}`] : facts;
    }

    bars(title, step, share) {
      const shares = step.candidates.map((candidate) => [candidate, share(candidate)]);
      const sorted = shares.sort((a, b) => (b[1] ?? -1) - (a[1] ?? -1) || (b[0].score ?? -1e9) - (a[0].score ?? -1e9)).slice(0, 8);
      const chosen = shares.find(([candidate]) => candidate === step.chosen);
      if (!sorted.includes(chosen)) sorted.splice(-1, 1, chosen);
      const rows = sorted.map(([candidate, p]) => {
        const kinds = [candidate === step.chosen ? "et-chosen" : "", candidate === step.greedy ? "et-greedy" : "", p === null ? "et-out" : ""];
        const button = this.hasAttribute("branch");
        const label = make(button ? "button" : "span", { class: "et-name", type: button ? "button" : null, title: button ? "Go on from this token" : null }, make("bdi", {}, visible(candidate.text)));
        if (button) label.addEventListener("click", () => this.tell("explorer-branch", { position: this.state.position, token: candidate.token }));
        return make("li", { class: kinds.filter(Boolean).join(" ") || null, style: { "--et-p": String(p ?? 0) } }, label,
          make("span", { class: "et-value" }, p === null ? "excluded" : percent(p)));
      });
      return make("section", {}, make("h5", {}, title), make("ol", { class: "et-list" }, ...rows));
    }

    /** What every reader and every part says of the chosen token and of another one. */
    why(text, step, other, piece) {
      const rows = [];
      const row = (name, weight, values, difference) => rows.push(make("tr", {}, make("th", { scope: "row" }, name),
        ...values.map((value) => make("td", {}, value)), make("td", {}, weight === null ? "" : number(weight)),
        make("td", {}, difference === null ? "" : (difference > 0 ? "+" : "") + number(difference))));
      text.readers.forEach((reader, i) => {
        const weight = step.weights[reader] ?? null;
        const pair = [step.chosen, other].map((candidate) => candidate.logProbs[i]);
        // Contrastive search's confidence is this reader's probability, and has the weight.
        if (weight === null && [step.chosen, other].every((candidate) => Math.abs(candidate.parts.confidence - candidate.readers[i]) < 1e-3)) return;
        row(reader, weight, [step.chosen, other].map((candidate) => percent(candidate.readers[i])),
          weight === null || pair.includes(null) ? null : weight * (pair[0] - pair[1]));
      });
      for (const name of new Set([...Object.keys(step.chosen.parts), ...Object.keys(other.parts)])) {
        const pair = [step.chosen, other].map((candidate) => candidate.parts[name] ?? null);
        const weight = step.weights[name] ?? null;
        row(name, weight, pair.map(number), weight === null || pair.includes(null) ? null : weight * (pair[0] - pair[1]));
      }
      const scores = [step.chosen, other].map((candidate) => candidate.score);
      row("score", null, scores.map((score) => (score === null ? "excluded" : number(score))), scores.includes(null) ? null : scores[0] - scores[1]);
      rows[rows.length - 1].className = "et-score";
      const head = make("tr", {}, make("td", {}), make("th", { scope: "col" }, piece(step.chosen)), make("th", { scope: "col" }, piece(other)),
        make("th", { scope: "col" }, "weight"), make("th", { scope: "col" }, "adds"));
      const table = make("div", { class: "et-why" }, make("table", {}, make("caption", {}, "What the score is made of"), make("thead", {}, head), make("tbody", {}, ...rows)));
      const repeats = [step.chosen, other].filter((candidate) => candidate.repeats !== null).map((candidate) =>
        make("li", {}, piece(candidate), " is most like ", make("bdi", { class: "et-piece" }, visible(text.tokens[candidate.repeats])),
          ` at token ${candidate.repeats} (${number(candidate.parts.penalty)})`));
      if (repeats.length) table.append(make("ul", {}, ...repeats));
      return table;
    }

    // --- the address ------------------------------------------------------------------------------------------------

    keep() {
      if (!this.hasAttribute("address")) return;
      const values = new URLSearchParams(this.quantity ? { shade: this.quantity } : {});
      if (this.state) {
        values.set("text", `${this.state.text.group + 1}.${this.state.text.index + 1}`);
        values.set("token", String(this.state.position));
        if (this.pinned) values.set("pinned", "1");
      }
      history.replaceState(null, "", "#" + values);
    }

    /** Show what the address says; what it says wrongly stays as it is, and the address then tells that. */
    restore() {
      const values = new URLSearchParams(location.hash.slice(1)), shade = values.get("shade");
      const isGiven = location.hash.length > 1;
      if (this.quantities.includes(shade)) this.choose(shade);
      const [group, index] = (values.get("text") ?? "").split(".").map(Number);
      const text = (this.groups[group - 1] ?? [])[index - 1], position = Number(values.get("token"));
      if (text && !text.plain && Number.isInteger(position) && position >= text.first && position < text.tokens.length) {
        this.select(text, position, values.get("pinned") === "1", true);
        text.elements[position].scrollIntoView({ block: "nearest" });
      } else if (isGiven || this.state) this.keep();
    }
  }

  customElements.define("explained-texts", ExplainedTexts);
})();
