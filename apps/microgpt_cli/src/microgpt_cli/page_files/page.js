"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const T = data.tokens.length;
const SHARES = Uint8Array.from(atob(data.attention), (char) => char.charCodeAt(0));
const MOST_LABELS = 40; // of a side of the large head
const state = { token: T - 1, head: 0 };

// Attention of a head from a row to a column, 0 to 1: rows of a lower triangle, one after another.
const share = (head, row, column) =>
  column > row ? 0 : SHARES[(head * T * (T + 1)) / 2 + (row * (row + 1)) / 2 + column] / 255;
const percent = (p) => (p === null ? "?" : p > 0 && p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const mixed = (from, to, amount) => {
  const [a, b] = [rgb(color(from)), rgb(color(to))];
  return `rgb(${a.map((x, i) => Math.round(x + (b[i] - x) * amount)).join(" ")})`;
};
const made = (tag, text = "", properties = {}) =>
  Object.assign(document.createElement(tag), { textContent: text }, properties);

// One option of a list is chosen, and reached by Tab; the arrow keys move from it.
function choosable(list, options, choose) {
  const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  options.forEach((option, i) => {
    option.setAttribute("role", "option");
    option.addEventListener("click", () => choose(i));
  });
  list.addEventListener("keydown", (event) => {
    const at = options.findIndex((option) => option.getAttribute("aria-selected") === "true");
    const to = { Home: 0, End: options.length - 1 }[event.key] ?? at + (move[event.key] ?? NaN);
    if (!(to >= 0 && to < options.length)) return;
    event.preventDefault();
    choose(to);
    options[to].focus();
  });
  return (chosen) =>
    options.forEach((option, i) => {
      option.setAttribute("aria-selected", i === chosen);
      option.tabIndex = i === chosen ? 0 : -1;
    });
}

function draw(canvas, head, size) {
  const context = canvas.getContext("2d");
  const cell = size / T;
  canvas.width = canvas.height = size;
  context.fillStyle = color("--line");
  for (let row = 0; row < T; row++)
    context.fillRect(0, row * cell, (row + 1) * cell, cell);
  context.fillStyle = color("--blue");
  for (let row = 0; row < T; row++)
    for (let column = 0; column <= row; column++) {
      context.globalAlpha = share(head, row, column);
      if (context.globalAlpha) context.fillRect(column * cell, row * cell, cell, cell);
    }
  context.globalAlpha = 1;
}

// The names of rows and columns have a margin, in pixels of the page, unless they are too many.
const margin = () => (T <= MOST_LABELS ? 56 : 0);

function drawLarge() {
  const canvas = $("large"), context = canvas.getContext("2d"), scale = devicePixelRatio;
  const edge = margin() * scale, size = Math.max(1, canvas.clientWidth * scale - edge), cell = size / T;
  const square = document.createElement("canvas");
  draw(square, state.head, size);
  canvas.width = canvas.height = size + edge;
  context.drawImage(square, edge, edge);
  context.strokeStyle = color("--ink");
  context.lineWidth = 2 * scale;
  context.strokeRect(edge, edge + state.token * cell, (state.token + 1) * cell, cell);
  if (!edge) return;
  context.fillStyle = color("--ink");
  context.font = `${Math.min(14 * scale, cell * 0.9)}px ui-monospace, monospace`;
  context.textBaseline = "middle";
  data.tokens.forEach((name, i) => {
    const at = edge + (i + 0.5) * cell, room = edge - 6 * scale;
    context.textAlign = "right";
    context.fillText(name, room, at, room);
    context.save();
    context.translate(at, room);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(name, 0, 0, room);
    context.restore();
  });
}

function row(name, p, about, isActual) {
  const line = made("tr", "", { className: isActual ? "actual" : "" });
  const bar = made("div"), cell = made("td");
  bar.style.width = `${100 * (p ?? 0)}%`;
  cell.append(bar);
  line.append(...(about ? [made("th", about)] : []), made("th", name), cell, made("td", percent(p)));
  return line;
}

function showNext() {
  const step = Number($("temperature").value), degrees = step / 10, { token } = state;
  $("degrees").textContent = degrees.toFixed(1);
  const rows = data.next[token].map(([name, gap, id], i) => {
    const best = data.best[token][step - 1];
    const p = step ? best * Math.exp(gap / degrees) : i ? 0 : 1;
    return row(name, gap === null || best === null ? null : p, "", id === data.ids[token + 1]);
  });
  $("next").tBodies[0].replaceChildren(...rows);
}

const tokens = data.tokens.map((name, i) =>
  made("span", name, { className: data.special[i] ? "special" : "" }));
const heads = data.heads.map(({ title, about }) => {
  const option = made("div");
  option.append(made("canvas"), made("span", title.replace("block ", "").replace(", head ", ".")), ` ${about}`);
  option.setAttribute("aria-label", `${title}: ${about}`);
  return option;
});
tokens.forEach((token, i) => {
  $("tokens").append(token);
  if (["↵", "<end_turn>"].includes(data.tokens[i])) $("tokens").append(made("br"));
  token.addEventListener("mouseenter", () => choose({ token: i }));
});
$("heads").append(...heads);
const markToken = choosable($("tokens"), tokens, (token) => choose({ token }));
const markHead = choosable($("heads"), heads, (head) => choose({ head }));

function choose(change) {
  Object.assign(state, change);
  const { token, head } = state;
  const byAttention = document.querySelector("[name=tint]:checked").value === "attention";
  tokens.forEach((element, i) => {
    const amount = byAttention ? share(head, token, i) : Math.min(1, (data.surprise[i] ?? 0) / 8);
    element.style.background = mixed("--card", byAttention ? "--cool" : "--warm", amount);
  });
  markToken(token);
  markHead(head);
  const cost = data.surprise[token];
  $("chosen").textContent = `Token ${token + 1} of ${T}: ${data.tokens[token]}` + (token === 0
    ? ", the first, which is not predicted"
    : cost === null ? "" : `, surprise ${cost.toFixed(2)} nats: it had a probability of ${percent(Math.exp(-cost))}`);
  $("head-title").textContent = `${data.heads[head].title}: ${data.heads[head].about}`;
  drawLarge();
  showNext();
  $("lens").tBodies[0].replaceChildren(...data.lens.map((stage, i) =>
    row(stage[token][0], stage[token][1], i ? `after block ${i}` : "embedded", false)));
}

$("large").addEventListener("mousemove", (event) => {
  const size = $("large").clientWidth - margin();
  const [column, line] = [event.offsetX, event.offsetY].map((at) => Math.floor(((at - margin()) / size) * T));
  $("cell").textContent = column >= 0 && line >= column && line < T
    ? `${line + 1}, ${data.tokens[line]}, attends to ${column + 1}, ${data.tokens[column]}: ${percent(share(state.head, line, column))}`
    : "";
});
$("temperature").addEventListener("input", showNext);
document.querySelectorAll("[name=tint]").forEach((each) => each.addEventListener("change", () => choose({})));
const drawAll = () => {
  heads.forEach((option, head) => draw(option.querySelector("canvas"), head, Math.max(120, Math.min(T, 480))));
  choose({});
};
addEventListener("resize", drawLarge);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
$("about").textContent = data.about;
drawAll();
