// Live data: a WebSocket that comes back by itself, and a run followed by byte offset (history once, then what is new).
// Knows nothing of the page but one event on `window`: "afina:line" with detail true or false (connected or not).

import { call } from "./kit.js";

const FIRST_WAIT = 500;
const LAST_WAIT = 10000;
const open = new Set();
const lost = new Set();

function report(live, connected) {
  const before = lost.size > 0;
  if (connected || !open.has(live)) lost.delete(live);
  else lost.add(live);
  if (before !== lost.size > 0) window.dispatchEvent(new CustomEvent("afina:line", { detail: lost.size === 0 }));
}

/** A WebSocket under /api/v1 that reconnects after 0.5, 1, 2 … 10 s until `close()`. `address()` is asked anew each time. */
export class Live {
  constructor(address, onMessage, { onOpen } = {}) {
    Object.assign(this, { address, onMessage, onOpen, wait: FIRST_WAIT, timer: 0, socket: null });
    open.add(this);
    this.connect();
    this.wake = () => { if (!document.hidden && this.timer) this.connect(); };
    window.addEventListener("online", this.wake);
    document.addEventListener("visibilitychange", this.wake);
  }

  async connect() {
    clearTimeout(this.timer);
    this.timer = 0;
    if (this.onOpen) {
      try { await this.onOpen(); } catch (error) { return this.failed(error); }
      if (!open.has(this)) return undefined;
    }
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/api/v1/${this.address()}`);
    this.socket = socket;
    socket.onopen = () => { this.wait = FIRST_WAIT; report(this, true); };
    socket.onmessage = (event) => this.onMessage(JSON.parse(event.data));
    socket.onclose = (event) => { if (this.socket === socket) this.closed(event); };
    return undefined;
  }

  failed(error) {
    if (error.status >= 400 && error.status < 500) return this.close();
    return this.closed();
  }

  closed(event) {
    this.socket = null;
    if (!open.has(this)) return;
    if (event?.code === 1000 || event?.code === 4404) { this.close(); return; }
    report(this, false);
    this.timer = setTimeout(() => this.connect(), this.wait * (0.8 + Math.random() * 0.4));
    this.wait = Math.min(LAST_WAIT, this.wait * 2);
  }

  close() {
    open.delete(this);
    report(this, true);
    clearTimeout(this.timer);
    window.removeEventListener("online", this.wake);
    document.removeEventListener("visibilitychange", this.wake);
    this.socket?.close();
  }
}

const CONSOLE_TAIL = 65536;

/**
 * Follow one run. `on.events(list)`, `on.console(text)` and `on.run(info)` are called with what is new, in order and once.
 * The history comes over GET (compressed), what follows over the socket; after a break both offsets go on where they were.
 */
export function follow(id, on, { console = true } = {}) {
  let events = 0;
  let text = console ? -CONSOLE_TAIL : null;
  const history = async () => {
    const answer = await call("GET", `runs/${encodeURIComponent(id)}/events?offset=${events}`);
    events = answer.offset;
    if (answer.events.length) on.events?.(answer.events);
  };
  const address = () => `runs/${encodeURIComponent(id)}/live?events=${events}${text === null ? "" : `&console=${text}`}`;
  return new Live(address, (message) => {
    if (message.events) { events = message.events_offset; on.events?.(message.events); }
    if (message.console !== undefined) { text = message.console_offset; on.console?.(message.console); }
    if (message.run) on.run?.(message.run);
  }, { onOpen: history });
}
