// What a person sees: a headline, and a card for each place; it decides nothing, verdicts come from the server.

const WORDS = {
  pass: 'matches', fail: 'wrong', fallback: 'ran elsewhere', suspicious: 'suspicious', missing: 'not here',
  error: 'broke off',
};
const PLACES = { wasm: 'CPU', webgpu: 'GPU', webnn: 'WebNN' };
let shown = {}, running = -1;

export function show(news, now = running) {
  shown = { ...shown, ...news };
  running = now;
  const byId = id => document.getElementById(id);
  put(byId('headline'), headline());
  put(byId('lead'), shown.failed ?? shown.lead ?? shown.device ?? '');
  const list = byId('cells');
  (shown.cells ?? []).forEach((cell, index) => {
    const text = JSON.stringify([cell, index === running && shown.loading]);
    const old = list.children[index];
    if (old?.told === text) return;
    const item = card(cell, index === running ? shown.loading : null);
    item.told = text;
    if (old) old.replaceWith(item); else list.append(item);
  });
}

function headline() {
  if (shown.failed) return 'This stopped';
  if (!shown.cells) return 'Looking at this device';
  delete shown.lead;
  const compared = shown.cells.filter(cell => cell.rows.parity && cell.rows.parity.outcome !== 'missing');
  const passed = compared.filter(cell => verdict(cell) === 'pass');
  if (!shown.done) {
    const possible = shown.cells.filter(cell => verdict(cell) !== 'missing');
    return `Measuring this device: ${possible.filter(cell => cell.state === 'done').length} of ${possible.length}`;
  }
  if (!compared.length) return 'Nothing could run here';
  const some = passed.length === compared.length ? '' : `${passed.length} of `;
  return `The model runs right in ${some}${count(compared.length)}`;
}

const count = number => (number === 1 ? '1 place' : `${number} places`);

// The first part of a cell that is no pass; a cell that passes passes in all.
function verdict(cell) {
  const outcomes = [cell.rows.parity, cell.rows.quality, cell.rows.latency].filter(Boolean).map(row => row.outcome);
  return outcomes.find(outcome => outcome !== 'pass') ?? outcomes[0];
}

function card(cell, loading) {
  const outcome = cell.state === 'done' ? verdict(cell) : null;
  const item = element('li', { class: `cell ${cell.state} ${outcome ?? ''}` });
  const [, provider, detail] = /^web:(\w+)-?(.*)$/.exec(cell.place);
  const title = element('h2', {}, PLACES[provider]);
  title.append(element('small', {}, detailOf(provider, detail)));
  const top = element('div', { class: 'top' });
  top.append(title, element('span', { class: 'badge' }, outcome ? WORDS[outcome] ?? outcome : cell.state));
  item.append(top, element('p', { class: 'artifact' }, cell.artifact));
  if (cell.state === 'running') item.append(progress(cell.said, loading));
  const timed = cell.rows.latency;
  // An emulator's times say nothing.
  if (timed?.decode && timed.identity.evidence === 'run') item.append(...speed(timed));
  if (cell.rows.parity?.free) item.append(accuracy(cell.rows.parity));
  for (const sentence of sentences(cell)) item.append(element('p', { class: 'reason' }, sentence));
  return item;
}

const detailOf = (provider, detail) => ({
  wasm: detail === '1' ? 'wasm, 1 thread' : `wasm, ${detail} threads`,
  webgpu: 'WebGPU',
  webnn: `${detail.toUpperCase()} asked for`,
})[provider];

function progress({ text, done, total }, loading) {
  const box = element('div', { class: 'progress' });
  const bar = element('progress');
  const part = loading ? loading.have / loading.total : total ? done / total : null;
  if (part !== null) { bar.max = 1; bar.value = part; }
  bar.setAttribute('aria-label', 'progress');
  const megabytes = count => (count / 1e6).toFixed(1);
  const words = loading ? `downloading, ${megabytes(loading.have)} of ${megabytes(loading.total)} MB` : doing(text);
  box.append(bar, element('p', {}, words));
  return box;
}

// What the harness says it does names artifact and place, which the card names already.
function doing(text) {
  const verb = /^(loading|timing) /.exec(text)?.[1];
  return verb ?? (/ reading /.test(text) ? 'reading a text' : text ? 'comparing every logit and state' : 'starting');
}

function speed(latency) {
  const { decode, prefill } = latency;
  const big = element('p', { class: 'speed' });
  big.append(element('strong', {}, round(1000 * decode.tokens / decode.median_ms)), ' tokens a second');
  const facts = element('dl');
  const fact = (name, value) => { facts.append(element('dt', {}, name), element('dd', {}, value)); };
  fact('a token', `${ms(decode.median_ms)} median, ${ms(decode.p90_ms)} p90, ${ms(decode.p99_ms)} p99`);
  if (prefill) fact('a prompt', `${round(1000 * prefill.tokens / prefill.median_ms)} tokens a second`);
  fact('first token', ms(1000 * latency.first_token_s));
  fact('loading', ms(1000 * latency.load_s));
  if (latency.rss_bytes) fact('memory', `${(latency.rss_bytes / 1e6).toFixed(0)} MB, as the browser tells`);
  return [big, samples(decode.seconds.map(each => 1000 * each), decode), facts];
}

// Every sample as a dot, in the order they were taken, with the median as a line.
function samples(times, { median_ms: median }) {
  const [width, height, most] = [320, 64, Math.max(...times, 2 * median)];
  const at = time => (height - 6 - (height - 12) * time / most).toFixed(1);
  const size = { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: 'none' };
  const svg = drawn('svg', { ...size, role: 'img', class: 'samples' });
  const title = drawn('title', {});
  title.textContent = `${times.length} tokens, ${ms(Math.min(...times))} to ${ms(Math.max(...times))} each`;
  svg.append(title, drawn('line', { x1: 0, x2: width, y1: at(median), y2: at(median) }));
  times.forEach((time, index) => {
    const across = 4 + (width - 8) * index / Math.max(1, times.length - 1);
    svg.append(drawn('circle', { cx: across.toFixed(1), cy: at(time), r: 2.2 }));
  });
  return svg;
}

function accuracy(parity) {
  const worst = precise(Math.max(...parity.free.max_abs));
  const share = Math.round(100 * parity.free.top1);
  const text = `Off by ${worst} in a logit over ${parity.steps} tokens, ${precise(parity.bound.max_abs)} allowed; `
    + `${share}% of the likeliest tokens are the same.`;
  return element('p', { class: 'accuracy' }, text);
}

function sentences(cell) {
  const all = Object.values(cell.rows).flatMap(row => [...row.reasons, ...(row.warnings ?? [])]);
  return [...new Set(all)].map(each => each.replace(/^./, letter => letter.toUpperCase()));
}

const round = number => (number >= 100 ? number.toFixed(0) : number.toPrecision(3));
const precise = number => (number && number < 0.001 ? number.toExponential(1) : String(Number(number.toPrecision(2))));
const ms = number => (number >= 1000 ? `${(number / 1000).toFixed(1)}\u00a0s` : `${round(number)}\u00a0ms`);

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function element(name, attributes = {}, text = '') {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function drawn(name, attributes) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
