// The lists beside the image: of classes, and of images. Names are set as text, never as markup.

import {NONE, css} from "/view.js";

export const element = (tag, content, attributes) => {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...[].concat(content ?? []));
  return node;
};
const count = n => n < 10_000 ? String(n) : n < 1e6 ? `${Math.round(n / 1000)} k` : `${(n / 1e6).toFixed(1)} M`;

/** A row for each class, and one for no label; `on` has what is to be done: `choose(id)` and `toggle(id)`. */
export function classRows(state, chosen, hidden, on) {
  const rows = state.classes.map((one, i) => row(one.id, one.name, i < 9 ? i + 1 : null, one));
  return state.read_only ? rows : [...rows, row(NONE, "no label", null, null)];

  function row(id, name, key, known) {
    const swatch = element("i", null, {className: known ? "swatch" : "swatch none"});
    if (known) swatch.style.background = css(known.color);
    const radio = element("input", null, {type: "radio", name: "class", checked: id === chosen, onchange: () => on.choose(id)});
    radio.dataset.key = `r${id}`;
    const label = element("label", [radio, swatch, element("span", name)], {title: name});
    if (key) label.append(element("kbd", String(key), {ariaHidden: "true"}));
    const item = element("li", null, {className: id === chosen ? "chosen" : ""});
    if (!known) {
      item.append(element("span"), label, element("small", "brush, polygon"));
      return item;
    }
    const box = element("input", null,
      {type: "checkbox", checked: !hidden.has(id), ariaLabel: `show ${name}`, onchange: () => on.toggle(id)});
    box.dataset.key = `b${id}`;
    item.append(box, label, element("span", count(known.pixels), {className: "number", title: "pixels that taught it here"}),
      element("span", count(known.prototypes), {className: "number", title: "prototypes"}));
    return item;
  }
}

export class ImageList {
  #nodes = new Map();  // by image; kept, as a folder may have thousands
  #most = 0;  // the largest doubt of an image

  constructor(root, thumb, open) {
    Object.assign(this, {root, thumb, open});
  }

  /** Those to be finished first, by worth; then the finished ones; then the damaged ones. */
  show(state, current) {
    const ranks = new Map(state.order.map((id, i) => [id, i]));
    const rank = image => [Number(Boolean(image.error)), Number(image.done), ranks.get(image.id) ?? Infinity];
    const sorted = [...state.images].sort((a, b) => {
      const [one, other] = [rank(a), rank(b)], i = one.findIndex((value, place) => value !== other[place]);
      return i < 0 ? a.id - b.id : one[i] - other[i];
    });
    this.#most = Math.max(0, ...state.images.map(image => image.doubt ?? 0));
    const nodes = sorted.map(image => this.#item(image, image.id === current)), {children} = this.root;
    if (nodes.length !== children.length || nodes.some((node, i) => node !== children[i])) this.root.replaceChildren(...nodes);
  }

  /** Read thumbnails again. */
  renew(ids) {
    for (const id of ids) {
      const picture = this.#nodes.get(id)?.querySelector("img");
      if (picture) picture.src = this.thumb(id);
    }
  }

  #item(image, current) {
    const {id, name, doubt, clicks, done, error} = image;
    if (!this.#nodes.has(id)) {
      const picture = error ? element("span", "damaged", {className: "damaged"})
        : element("img", null, {alt: "", loading: "lazy", src: this.thumb(id)});
      const button = element("button", [picture, element("span", [element("b", name), element("small")])],
        {type: "button", title: name, onclick: () => this.open(id)});
      this.#nodes.set(id, element("li", button));
    }
    const node = this.#nodes.get(id), text = node.querySelector("small"), key = JSON.stringify([image, this.#most, current]);
    if (node.dataset.key === key) return node;
    if (current) this.renew([id]);
    node.dataset.key = key;
    node.firstChild.setAttribute("aria-current", current);
    const parts = [error ?? (done ? "✓ finished" : doubt === null ? "not ranked yet" : "")];
    if (!parts[0]) {
      const bar = element("i");
      bar.style.width = `${100 * doubt / (this.#most || 1)}%`;
      parts.push(element("span", bar, {className: "bar"}), `doubt ${Math.round(100 * doubt)} %`);
    }
    if (clicks) parts.push(` · ${clicks} click${clicks === 1 ? "" : "s"}`);
    text.className = error ? "wrong" : "";
    text.replaceChildren(...parts);
    return node;
  }
}
