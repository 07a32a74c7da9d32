// Lets the server run one place after another, each in a worker of its own, and shows what it says of them.

import { describe } from './device.mjs';
import { show } from './show.mjs';

const files = new Map();
let memory = 0, status, running = -1, loaded = null;

main().catch(error => show({ failed: String(error) }));

async function main() {
  show({ lead: 'Asking the browser what it has' });
  status = await post('visit', { ...(await describe()), visit: sessionStorage.getItem('visit') ?? '' });
  sessionStorage.setItem('visit', status.visit);
  show(status);
  const closed = JSON.stringify({ reason: 'the page was closed' });
  addEventListener('pagehide', () => navigator.sendBeacon(address('gone'), closed));
  stayAwake();
  watchMemory();
  const beats = beat();
  await Promise.race([beats, runAll()]); // beats end first where the server is gone
  running = -1;
  await beats;
  document.documentElement.dataset.state = 'done';
}

async function runAll() {
  for (const [index, cell] of status.cells.entries()) if (cell.state === 'waiting') await run(index);
}

// A new worker for each place: its memory goes when it ends, and wasm's number of threads can be chosen only once.
async function run(index) {
  running = index;
  memory = 0;
  await post('begin', {}, `&cell=${index}`);
  const worker = new Worker('worker.mjs', { type: 'module' });
  const ended = new Promise(resolve => {
    worker.onerror = event => resolve(event.message || 'the worker could not start');
    worker.onmessage = ({ data }) => {
      if (data.loaded) loaded = worker;
      else if (data.need) give(worker, data.need);
      else resolve(data.failed ?? '');
    };
  });
  worker.postMessage({ visit: status.visit, cell: index });
  const reason = await Promise.race([ended, settled(index)]);
  if (reason) status = await post('gone', { reason });
  await settled(index);
  loaded = null;
  worker.terminate();
}

async function give(worker, url) {
  try {
    worker.postMessage({ url, blob: await download(url) });
  } catch (error) {
    worker.postMessage({ url, failed: String(error) });
  }
}

async function settled(index) {
  while (status.cells[index].state !== 'done') await pause(200);
}

async function beat() {
  for (let missed = 0; missed < 20;) {
    try {
      status = await post('beat', { memory });
      missed = 0;
      show(status, running);
      if (status.done) return;
    } catch (error) {
      missed++;
    }
    await pause(1000);
  }
  throw new Error('The server does not answer any more. What it had is in its results file.');
}

// Files go into blobs, which browsers keep outside a page's memory; a download that breaks off continues where it was.
function download(url) {
  if (!files.has(url)) files.set(url, fetchWhole(url));
  return files.get(url);
}

async function fetchWhole(url) {
  const parts = [];
  let have = 0, total = Infinity, fruitless = 0;
  while (have < total) {
    try {
      const response = await fetch(url, { headers: have ? { Range: `bytes=${have}-` } : {} });
      if (!response.ok) throw new Error(`${url}: ${response.status}`);
      if (response.status === 200) { parts.length = 0; have = 0; }
      total = have + Number(response.headers.get('Content-Length'));
      for (const reader = response.body.getReader(); ;) {
        const { done, value } = await reader.read();
        if (done) break;
        parts.push(value);
        have += value.length;
        fruitless = 0;
        show({ loading: { have, total } });
      }
    } catch (error) {
      if (++fruitless === 5) throw error;
      await pause(1000);
    }
  }
  show({ loading: null });
  return new Blob(parts);
}

async function post(call, document, more = '') {
  const response = await fetch(address(call) + more, { method: 'POST', body: JSON.stringify(document) });
  if (!response.ok) throw new Error(`the server said ${response.status}: ${await response.text()}`);
  return response.status === 204 ? null : response.json();
}

const address = call => `api/${call}?visit=${status?.visit ?? ''}`;
const pause = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));

async function stayAwake() {
  const ask = () => navigator.wakeLock?.request('screen').catch(() => {});
  document.addEventListener('visibilitychange', () => { if (document.visibilityState === 'visible') ask(); });
  await ask();
}

// Browsers answer when they next collect garbage. What was asked while another model was there does not count.
async function watchMemory() {
  while (self.crossOriginIsolated && performance.measureUserAgentSpecificMemory) {
    const whose = loaded;
    if (whose) {
      const found = await performance.measureUserAgentSpecificMemory().catch(() => null);
      if (!found) return;
      if (whose === loaded) memory = Math.max(memory, found.bytes);
    }
    await pause(500);
  }
}
