// The explorer: which image features feed which cells. All geometry is in the data; this script reads and draws it.

const data = JSON.parse(document.getElementById("explorer-data").textContent);
const byId = (id) => document.getElementById(id);

// The selection is a position, not an index, so that it stays when the reshaper changes: on the ground { x, y } in
// metres, in an image { camera, u, v } in pixels. The latest of each is kept; `onGround` selects the shown one.
const state = {
  entry: 0, scene: 0, head: 0, order: 0, behind: "target", onGround: true, ground: null, pixel: null, held: false,
};

const entry = () => data.entries[state.entry];
const scene = () => data.scenes[state.scene];
const view = () => entry().views[state.scene][state.order];
const cells = () => data.cells[entry().cells];
const features = () => data.features[entry().features];

const unpacked = new Map();

async function unpack(number) {
  const count = cells().rows.length * cells().cols.length; // before anything else is chosen
  const packed = Uint8Array.from(atob(data.weights[number]), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = await new Response(stream).arrayBuffer();
  return {
    step: new Float32Array(bytes, 0, count),
    total: new Float32Array(bytes, 4 * count, count),
    levels: new Uint8Array(bytes, 8 * count),
  };
}

function weights() {
  const number = view().weights[state.head];
  if (!unpacked.has(number)) unpacked.set(number, unpack(number));
  return unpacked.get(number);
}

const tokensPerCamera = () => features().height * features().width;
const tokens = () => scene().cameras.length * tokensPerCamera();

/** Return the weight of every token for a cell. */
function rowOf(w, cell) {
  return Float32Array.from(w.levels.subarray(cell * tokens(), (cell + 1) * tokens()), (level) => level * w.step[cell]);
}

/** Return the weight of a token for every chosen cell. */
function columnOf(w, token) {
  return w.step.map((step, cell) => w.levels[cell * tokens() + token] * step);
}

function strongest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function nearest(sorted, value) {
  return sorted.reduce((best, one, i) => (Math.abs(one - value) < Math.abs(sorted[best] - value) ? i : best), 0);
}

/** Return the index of the chosen cell nearest to a ground point. */
function cellAt({ x, y }) {
  const { rows, cols, grid } = cells();
  const row = (grid.forward_m[1] - x) / grid.cell_m - 0.5;
  const col = (grid.left_m[1] - y) / grid.cell_m - 0.5;
  return nearest(rows, row) * cols.length + nearest(cols, col);
}

function groundOf(cell) {
  const [x, y] = cells().centers[cell];
  return { x, y };
}

/** Return the index of the token nearest to a pixel. */
function tokenAt({ camera, u, v }) {
  const { height, width, stride, offset_px: offset } = features();
  const row = clamp(Math.round((v - offset) / stride), 0, height - 1);
  const col = clamp(Math.round((u - offset) / stride), 0, width - 1);
  return (camera * height + row) * width + col;
}

function pixelOf(token) {
  const { height, width, stride, offset_px: offset } = features();
  const within = token % (height * width);
  return {
    camera: Math.floor(token / (height * width)),
    u: stride * (within % width) + offset,
    v: stride * Math.floor(within / width) + offset,
  };
}

// The map shows the grid and the vehicle, which may be outside the grid.
const frame = (() => {
  const { forward_m: [near, far], left_m: [right, left] } = data.grid;
  const room = 0.035 * Math.max(far - near, left - right);
  return {
    top: Math.max(far, room),
    bottom: Math.min(near, -room),
    left: Math.max(left, room),
    right: Math.min(right, -room),
  };
})();
const frameHeight = frame.top - frame.bottom;
const frameWidth = frame.left - frame.right;
const downMap = (x) => (frame.top - x) / frameHeight;
const acrossMap = (y) => (frame.left - y) / frameWidth;
const acrossImage = (u) => (u + 0.5) / scene().width;
const downImage = (v) => (v + 0.5) / scene().height;

const colors = Uint8Array.from(data.colors.match(/../g), (pair) => parseInt(pair, 16));

function create(tag, className, parent) {
  const node = document.createElement(tag);
  node.className = className;
  parent.append(node);
  return node;
}

/** Place a node over a part of its parent, given in shares of its sides. */
function lay(node, left, top, width, height) {
  const shares = { left, top, width, height };
  for (const [side, share] of Object.entries(shares)) if (share !== undefined) node.style[side] = `${100 * share}%`;
  node.hidden = false;
}

/** Draw values from 0 to `largest` as colors whose opacity grows with the value. */
function drawHeat(canvas, width, height, valueAt, largest) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const value = largest > 0 ? valueAt(i) / largest : 0;
    const level = Math.round(255 * value);
    image.data.set(colors.subarray(3 * level, 3 * level + 3), 4 * i);
    image.data[4 * i + 3] = Math.round(235 * Math.sqrt(value));
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.hidden = false;
}

let panels = []; // one a camera: { panel, image, heat, box, cross }
const map = {};

function buildImages() {
  const holder = byId("images");
  panels = scene().cameras.map((camera, number) => {
    const figure = create("figure", "camera", holder);
    const [row, column] = camera.place;
    figure.style.gridArea = `${row + 1} / ${column + 1}`;
    const panel = create("div", "panel", figure);
    panel.tabIndex = 0;
    panel.setAttribute("role", "application");
    panel.setAttribute("aria-roledescription", "image");
    panel.setAttribute("aria-label", `Camera ${camera.name}. Arrow keys move the feature.`);
    panel.setAttribute("aria-describedby", "shown");
    create("figcaption", "", figure).textContent = camera.name;
    listen(panel, (across, down) => ({
      camera: number,
      u: across * scene().width - 0.5,
      v: down * scene().height - 0.5,
    }), (right, down) => moveToken(number, right, down));
    const image = create("img", "", panel);
    image.alt = "";
    image.draggable = false;
    return { panel, image, heat: create("canvas", "heat", panel), box: create("i", "box", panel), cross: create("i", "cross", panel) };
  });
  const columns = 1 + Math.max(...scene().cameras.map((camera) => camera.place[1]));
  holder.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  byId("panels").classList.toggle("several", columns > 1);
}

function buildMap() {
  const panel = (map.panel = byId("map"));
  panel.style.aspectRatio = `${frameWidth} / ${frameHeight}`;
  map.ground = create("div", "ground", panel);
  map.image = create("img", "", panel);
  map.image.alt = "";
  map.image.draggable = false;
  map.heat = create("canvas", "heat", panel);
  const { forward_m: [near, far], left_m: [right, left] } = data.grid;
  for (const node of [map.ground, map.image, map.heat]) {
    lay(node, acrossMap(left), downMap(far), (left - right) / frameWidth, (far - near) / frameHeight);
  }
  const vehicle = create("i", "vehicle", panel);
  vehicle.title = "the vehicle, heading up";
  lay(vehicle, acrossMap(0), downMap(0));
  map.box = create("i", "box", panel);
  map.cross = create("i", "cross", panel);
  listen(panel, (across, down) => ({
    x: frame.top - down * frameHeight,
    y: frame.left - across * frameWidth,
  }), moveCell);
  ticks(byId("ahead"), near, far, (node, x) => { node.style.top = `${100 * downMap(x)}%`; });
  ticks(byId("left"), right, left, (node, y) => { node.style.left = `${100 * acrossMap(y)}%`; });
}

/** Return about four round numbers of metres along a side. */
function ticks(holder, low, high, put) {
  const step = [1, 2, 5, 10, 20, 50, 100].find((metres) => (high - low) / metres <= 5) ?? 200;
  for (let metres = Math.ceil(low / step) * step; metres <= high; metres += step) {
    const node = create("span", "", holder);
    node.textContent = String(metres).replace("-", "−");
    put(node, metres);
  }
}

function drawBackgrounds() {
  const { height, width, target, cameras } = scene();
  cameras.forEach((camera, number) => {
    panels[number].image.src = camera.image;
    panels[number].panel.style.aspectRatio = `${width} / ${height}`;
  });
  byId("classes").hidden = state.behind === "nothing";
  map.image.hidden = state.behind === "nothing";
  map.image.src = state.behind === "prediction" ? view().prediction : target;
}

function clearMarks() {
  for (const { panel, heat, box, cross } of [...panels, map]) {
    panel.classList.toggle("heated", (panel === map.panel) !== state.onGround);
    heat.hidden = box.hidden = cross.hidden = true;
  }
}

/** Draw heat over the images: the features that feed a cell. */
function drawCell(w, cell) {
  const { height, width, stride, offset_px: offset } = features();
  const values = rowOf(w, cell);
  const largest = values[strongest(values)];
  panels.forEach(({ heat }, camera) => {
    drawHeat(heat, width, height, (i) => values[camera * tokensPerCamera() + i], largest);
    const edge = offset - stride / 2; // of the first feature, in pixels
    lay(heat, acrossImage(edge), downImage(edge), (width * stride) / scene().width, (height * stride) / scene().height);
  });
  for (const [camera, u, v] of scene().projections[entry().cells][cell]) {
    lay(panels[camera].cross, acrossImage(u), downImage(v));
  }
  const { x, y } = groundOf(cell);
  const side = cells().grid.cell_m;
  lay(map.box, acrossMap(y + side / 2), downMap(x + side / 2), side / frameWidth, side / frameHeight);
}

/** Draw heat over the map: the cells that a token feeds. */
function drawToken(w, token) {
  const { rows, cols, grid } = cells();
  const values = columnOf(w, token);
  const rowOfGrid = Array.from({ length: grid.rows }, (_, row) => nearest(rows, row));
  const colOfGrid = Array.from({ length: grid.cols }, (_, col) => nearest(cols, col));
  const valueAt = (i) => values[rowOfGrid[Math.floor(i / grid.cols)] * cols.length + colOfGrid[i % grid.cols]];
  drawHeat(map.heat, grid.cols, grid.rows, valueAt, values[strongest(values)]);
  const { camera, u, v } = pixelOf(token);
  const { stride } = features();
  const { width, height } = scene();
  lay(panels[camera].box, acrossImage(u - stride / 2), downImage(v - stride / 2), stride / width, stride / height);
  const ground = scene().grounds[entry().features][token];
  if (ground) lay(map.cross, acrossMap(ground[1]), downMap(ground[0]));
}

const decimal = (value, digits) => value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
const percent = (value) => `${value >= 0.0995 ? Math.round(100 * value) : (100 * value).toPrecision(2)}\u00a0%`;

function groundInWords({ x, y }) {
  const along = `${decimal(Math.abs(x), 1)}\u00a0m ${x < 0 ? "behind" : "ahead"}`;
  if (Math.abs(y) < 0.05) return along;
  return `${along}, ${decimal(Math.abs(y), 1)}\u00a0m to the ${y > 0 ? "left" : "right"}`;
}

function pixelInWords({ camera, u, v }) {
  return `pixel (${decimal(u, 0)},\u00a0${decimal(v, 0)}) of ${scene().cameras[camera].name}`;
}

function cellInWords(w, cell) {
  const values = rowOf(w, cell);
  const best = strongest(values);
  const place = `Cell ${groundInWords(groundOf(cell))}.`;
  const seen = scene().projections[entry().cells][cell];
  const actual = seen.length
    ? `True place: ${seen.map(([camera, u, v]) => pixelInWords({ camera, u, v })).join(" and ")}`
    : "No camera sees this cell";
  if (!(values[best] > 0)) return `${place} No feature feeds it. ${actual}.`;
  const at = pixelOf(best);
  const most = `Fed most by the feature on ${pixelInWords(at)}, with ${percent(values[best] / w.total[cell])} of all weight.`;
  const there = seen.find(([camera]) => camera === at.camera);
  if (!there) return `${place} ${most} ${actual}${seen.length ? ", another camera" : ""}.`;
  const apart = Math.hypot(at.u - there[1], at.v - there[2]) / features().stride;
  return `${place} ${most} ${actual}. Apart: ${decimal(apart, 1)}\u00a0features.`;
}

function tokenInWords(w, token) {
  const values = columnOf(w, token);
  const best = strongest(values);
  const place = `Feature on ${pixelInWords(pixelOf(token))}.`;
  const ground = scene().grounds[entry().features][token];
  const actual = ground ? `True place: ${groundInWords({ x: ground[0], y: ground[1] })}` : "It shows no ground on this map";
  if (!(values[best] > 0)) return `${place} It feeds none of the cells shown. ${actual}.`;
  const at = groundOf(best);
  const most = `It feeds most the cell ${groundInWords(at)}, which takes ${percent(values[best] / w.total[best])} of its weight here.`;
  if (!ground) return `${place} ${most} ${actual}.`;
  const apart = Math.hypot(at.x - ground[0], at.y - ground[1]);
  return `${place} ${most} ${actual}. Apart: ${decimal(apart, 1)}\u00a0m.`;
}

/** Draw everything again; the latest request wins. */
async function show() {
  drawBackgrounds();
  const asked = (show.latest = (show.latest ?? 0) + 1);
  try {
    const w = await weights();
    if (asked !== show.latest) return;
    clearMarks();
    const words = state.onGround ? showCell(w) : showToken(w);
    byId("shown").textContent = state.held ? `${words} Held: click to let go.` : words;
  } catch (error) {
    byId("shown").textContent = `The weights cannot be read: ${error.message}. The explorer needs a browser of 2023 or later.`;
  }
}

function showCell(w) {
  const cell = cellAt(state.ground);
  drawCell(w, cell);
  byId("largest").textContent = "largest of this cell";
  return cellInWords(w, cell);
}

function showToken(w) {
  const token = tokenAt(state.pixel);
  drawToken(w, token);
  byId("largest").textContent = "largest of this feature";
  return tokenInWords(w, token);
}

function point(place) {
  state.onGround = "x" in place;
  state[state.onGround ? "ground" : "pixel"] = place;
  show();
}

/** Move to the next chosen cell by arrow keys on the map. */
function moveCell(right, down) {
  const { rows, cols } = cells();
  const cell = cellAt(state.ground);
  const row = clamp(Math.floor(cell / cols.length) + down, 0, rows.length - 1);
  const col = clamp((cell % cols.length) + right, 0, cols.length - 1);
  point(groundOf(row * cols.length + col));
}

/** Move to the next feature by arrow keys on an image. */
function moveToken(camera, right, down) {
  const { stride } = features();
  const middle = { camera, u: scene().width / 2, v: scene().height / 2 };
  const from = pixelOf(tokenAt(state.pixel?.camera === camera ? state.pixel : middle));
  point(pixelOf(tokenAt({ camera, u: from.u + stride * right, v: from.v + stride * down })));
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Let mouse, finger and arrow keys point at positions of a panel. */
function listen(panel, placeAt, move) {
  const pointed = (event) => {
    const edge = panel.getBoundingClientRect();
    point(placeAt((event.clientX - edge.left) / edge.width, (event.clientY - edge.top) / edge.height));
  };
  panel.addEventListener("pointermove", (event) => { if (!state.held) pointed(event); });
  panel.addEventListener("pointerdown", (event) => {
    state.held = event.pointerType === "mouse" && !state.held; // a finger that is lifted leaves it shown anyway
    pointed(event);
  });
  panel.addEventListener("keydown", (event) => {
    if (!(event.key in ARROWS) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    move(...ARROWS[event.key]);
  });
}

/** Fill the entries of a list; a list of one entry is hidden. */
function fill(id, names) {
  const list = byId(id);
  list.replaceChildren(...names.map((name, i) => new Option(name, i, false, i === state[id])));
  list.parentElement.hidden = names.length < 2;
}

function fillLists() {
  state.head = Math.min(state.head, entry().heads.length - 1);
  state.order = Math.min(state.order, entry().orders.length - 1);
  fill("entry", data.entries.map(({ name }) => name));
  fill("scene", data.scenes.map(({ name }) => name));
  fill("head", entry().heads);
  fill("order", entry().orders);
}

function buildSwitches() {
  fillLists();
  for (const id of ["entry", "scene", "head", "order"]) {
    byId(id).addEventListener("change", (event) => {
      state[id] = Number(event.target.value);
      if (id === "entry") fillLists();
      show();
    });
  }
  for (const radio of document.getElementsByName("behind")) {
    radio.addEventListener("change", () => {
      state.behind = radio.value;
      show();
    });
  }
}

function buildLegend() {
  drawHeat(byId("scale"), 256, 1, (i) => i, 255);
  for (const { name, color } of data.legend) {
    const entry = create("span", "", byId("classes"));
    create("i", "chip", entry).style.background = color;
    entry.append(` ${name}`);
  }
}

/** Return the cell nearest to the middle of the map that a camera observes. */
function firstPlace() {
  const { forward_m: [near, far], left_m: [right, left] } = data.grid;
  const distance = ([x, y]) => Math.hypot(x - (near + far) / 2, y - (right + left) / 2);
  const all = cells().centers.map((_, cell) => cell);
  const seen = all.filter((cell) => scene().projections[entry().cells][cell].length);
  const sorted = (seen.length ? seen : all).sort((a, b) => distance(cells().centers[a]) - distance(cells().centers[b]));
  return groundOf(sorted[0]);
}

buildSwitches();
buildImages();
buildMap();
buildLegend();
point(firstPlace());
