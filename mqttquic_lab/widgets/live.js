// The live view, shared by LiveView and Dashboard: one ES module.
//
// Python sends "tick" messages, ten a second at most, with binary columns (ticks.py). This side keeps a bounded ring of
// the newest rows and draws in requestAnimationFrame. What came from the network becomes text nodes, never markup.

const ROW = 24; // px; rows of one height, so that only those in sight need to exist
const DEPTH = 12; // levels of the topic tree; deeper ones stay joined by slashes
const OPEN_UP_TO = 40; // topics; a larger tree starts folded
const STALE = 5000; // ms without news from the kernel
const TYPES = { f8: Float64Array, f4: Float32Array, u4: Uint32Array, u2: Uint16Array, u1: Uint8Array };
const CELLS = [["time", "time UTC"], ["topic", "topic"], ["payload", "payload"], ["qos", "QoS"],
	["flags", "", "R retained, D sent again (dup), 0 early data (0-RTT)"], ["stream", "stream"], ["ms", "ms", "latency, ms"]];
const LINES = ["p50", "p95", "p99"];
let views = 0;

export default { render };

const SKELETON = `<div class="mqlab" role="region">
<div class="hd"><span class="dot" data-r="dot"></span><span data-r="word"></span><span class="url" data-r="title"></span>
 <span class="chips" data-r="chips"></span> <button data-r="pause" aria-pressed="false" title="stops this picture, not the feed">pause</button>
 <button data-r="freeze" title="saves this picture as HTML without scripts">freeze</button></div>
<div class="banner" role="alert" data-r="banner" hidden></div>
<details class="hs" data-r="hs"><summary><b>Handshake</b> · <span data-r="hsline"></span></summary><div data-r="card"></div></details>
<div class="main"><section class="topics">
 <div class="bar"><input type="search" data-r="topicfilter" placeholder="filter topics" aria-label="filter topics"><span class="note" data-r="topicnote"></span></div>
 <div class="list tree" role="tree" tabindex="0" aria-label="topics" data-r="tree"></div></section>
<section class="messages">
 <div class="bar"><button class="chip" data-r="chosen" title="show all topics" hidden></button>
 <input type="search" data-r="filter" aria-label="filter messages" placeholder="filter: words, plant/+/temp, c > 20"
 title="All must hold: words, topic filters, comparisons of JSON members, qos, size, stream, ms. Sees 256 B of a payload.">
 <span class="note" role="status" data-r="hides"></span></div>
 <div class="stage"><div class="grid" role="grid" tabindex="0" aria-label="messages, newest first" aria-colcount="7" data-r="grid">
 <div class="row head" role="row" aria-rowindex="1">${CELLS.map(([name, text, title]) =>
	`<span role="columnheader" class="${name}" title="${title || text}">${text}</span>`).join("")}</div>
 <div class="list rows" role="rowgroup" data-r="rows"></div></div><div class="blank" data-r="blank"></div>
 <button class="pill" data-r="pill" hidden></button></div></section>
<section class="detail" aria-label="selected message"><div class="tabs" role="group" aria-label="payload as" data-r="tabs"></div>
 <div class="scroll" tabindex="0" aria-label="payload"><pre data-r="body"></pre><button data-r="fetch" hidden></button><dl data-r="facts"></dl></div></section></div>
<div class="plots" data-r="plots"></div>
<div class="foot" data-r="foot"><form data-r="form"><h4>publish</h4><div class="fields">
 <input data-r="ptopic" placeholder="topic" aria-label="topic" required><input data-r="ppayload" placeholder="payload" aria-label="payload">
 <select data-r="pqos" aria-label="QoS"><option value="0">QoS 0</option><option value="1">QoS 1</option><option value="2">QoS 2</option></select>
 <label><input type="checkbox" data-r="pretain">retain</label><button data-r="publish">publish</button></div>
 <div class="outcome" role="status" data-r="outcome"></div></form>
 <div><h4>connection</h4><ul data-r="events"></ul></div><div><h4 data-r="errorstitle"></h4><ul data-r="errors"></ul></div></div>
<div class="st" data-r="status"></div></div>`;

const PLOT = `<figure><figcaption></figcaption><div class="frame"><svg viewBox="0 0 118 100" preserveAspectRatio="none" role="img">
${'<line x1="0" x2="118" class="rule"/>'.repeat(4)}<path class="area"/>${LINES.map((l) => `<path class="line ${l}"/>`).join("")}</svg>
${'<span class="tick"></span>'.repeat(4)}<div class="none"></div></div><div class="ago"><span>60 s ago</span><span>now</span></div></figure>`;

// Small helpers

function h(tag, attributes, ...children) {
	const node = document.createElement(tag);
	for (const name in attributes) node.setAttribute(name, attributes[name]);
	node.append(...children);
	return node;
}

function html(markup) { // fixed markup of this file only
	const node = h("template");
	node.innerHTML = markup;
	return node.content;
}

function put(node, text) {
	if (node.shown !== text) node.textContent = node.shown = text;
}

function mark(node, name, value) {
	if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

function bytesOf(b) { // a copy: typed arrays need aligned offsets
	const start = b.byteOffset || 0;
	return (b.buffer || b).slice(start, start + b.byteLength);
}

function columns(spec, buffers) {
	return Object.fromEntries(spec.map(([name, type], i) => [name, new TYPES[type](bytesOf(buffers[i]))]));
}

const count = (n) => Math.round(n || 0).toLocaleString("en-US");
const plural = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;

function size(n) {
	let k = 0;
	for (; n >= 1024 && k < 3; k++) n /= 1024;
	return `${k && n < 99.95 ? n.toFixed(1) : Math.round(n)} ${["B", "KiB", "MiB", "GiB"][k]}`;
}

const ms = (v) => (Number.isFinite(v) ? v.toFixed(Math.abs(v) < 0.995 ? 2 : Math.abs(v) < 99.5 ? 1 : 0) : "");

const clock = (t, to = 23) => new Date(t).toISOString().slice(11, to); // UTC, as in feed.df

function lasted(t) {
	const text = new Date(Math.max(0, t)).toISOString();
	return t < 36e5 ? text.slice(14, 19) : `${Math.floor(t / 36e5)}:${text.slice(14, 19)}`;
}

// Control and direction-changing characters could make a name look like another one: show their code.
const ODD = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const code = (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;
const visible = (text) => String(text).replace(ODD, code);
const lined = (text) => text.replace(ODD, (c) => (c === "\n" || c === "\t" ? c : code(c)));

function utf8(bytes, whole) {
	try {
		return new TextDecoder("utf-8", { fatal: true }).decode(bytes, { stream: !whole });
	} catch {
		return null;
	}
}

const hexes = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join(" ");

function hexdump(bytes) {
	let dump = "";
	for (let i = 0; i < bytes.length; i += 16) {
		const part = bytes.subarray(i, i + 16), text = Array.from(part, (b) => (b > 31 && b < 127 ? String.fromCharCode(b) : "."));
		dump += `${i.toString(16).padStart(5, "0")}  ${hexes(part).padEnd(47)}  ${text.join("")}\n`;
	}
	return dump;
}

function parsed(text) {
	try {
		return { value: JSON.parse(text) };
	} catch {
		return null;
	}
}

function preview(row) { // one line for the table, kept in the row
	if (row.text === undefined) {
		const all = row.size <= row.bytes.length, text = utf8(row.bytes, all);
		row.odd = text === null || row.size === 0;
		row.text = text === null ? hexes(row.bytes.subarray(0, 48)) : visible(text.replace(/\s+/g, " ")) || (row.size ? "" : "(empty)");
		if (!all) row.text += "…";
	}
	return row.text;
}

// The filter box: words, topic filters, comparisons such as c > 20; all must hold.

function topicMatches(filter, topic) {
	const f = filter.split("/"), t = topic.split("/");
	if (topic[0] === "$" && "+#".includes(f[0])) return false; // [MQTT-4.7.2-1]
	for (let i = 0; i < f.length; i++) {
		if (f[i] === "#") return true;
		if (i >= t.length || (f[i] !== "+" && f[i] !== t[i])) return false;
	}
	return f.length === t.length;
}

function member(row, path) {
	if (/^(qos|size|stream|ms|topic)$/.test(path)) return row[path];
	if (row.json === undefined) row.json = row.size > row.bytes.length ? null : parsed(utf8(row.bytes, true));
	let value = row.json?.value;
	for (const part of path.replace(/^value\./, "").split(".")) value = Object(value) === value && Object.hasOwn(value, part) ? value[part] : undefined;
	return value;
}

function compare(path, op, wanted) {
	const numeric = wanted.trim() !== "" && Number.isFinite(Number(wanted));
	return (row) => {
		const value = member(row, path);
		if (value === undefined || value === null) return false;
		const [a, b] = numeric && typeof value !== "boolean" ? [Number(value), Number(wanted)] : [String(value), wanted];
		return { ">": a > b, "<": a < b, ">=": a >= b, "<=": a <= b, "!=": a !== b }[op] ?? a === b;
	};
}

function compile(text, topic) {
	const tests = topic ? [(row) => topicMatches(topic, row.topic)] : [];
	const rest = text.replace(/([\w$][\w$.-]*)\s*(>=|<=|!=|==?|>|<)\s*(?:"([^"]*)"|(\S+))/g, (_, path, op, quoted, bare) => {
		tests.push(compare(path, op, quoted ?? bare));
		return " ";
	});
	for (const word of rest.toLowerCase().split(/\s+/).filter((w) => w && w !== "and")) {
		if (/(^|\/)[+#](\/|$)/.test(word)) tests.push((row) => topicMatches(word, row.topic.toLowerCase()));
		else tests.push((row) => row.topic.toLowerCase().includes(word) || preview(row).toLowerCase().includes(word));
	}
	return tests.length ? (row) => tests.every((test) => test(row)) : null;
}

// A list that keeps only the rows in sight in the document.
class List {
	constructor(box, make, fill) {
		Object.assign(this, { box, make, fill, pool: [], total: 0 });
		box.append((this.inner = h("div", { class: "inner", role: "presentation" })));
	}

	grow(total) {
		if (total !== this.total) this.inner.style.height = `${(this.total = total) * ROW}px`;
	}

	draw(total) {
		this.grow(total);
		const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - 1);
		const shown = Math.min(total - first, Math.ceil(this.box.clientHeight / ROW) + 2);
		while (this.pool.length < shown) this.inner.append((this.pool[this.pool.length] = this.make()));
		this.pool.forEach((node, i) => {
			if ((node.hidden = i >= shown)) return;
			node.index = first + i;
			node.style.transform = `translateY(${node.index * ROW}px)`;
			this.fill(node, node.index);
		});
	}

	reveal(index) {
		const { box } = this, top = index * ROW;
		box.scrollTop = Math.min(top, Math.max(box.scrollTop, top + ROW - box.clientHeight));
	}

	step(event, index) { // the row that a key moves to, or undefined
		const page = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 1), n = this.total;
		const move = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -n, End: n }[event.key];
		if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
		event.preventDefault();
		return Math.max(0, Math.min(n - 1, index < 0 ? 0 : index + move));
	}
}

// NaN leaves a gap; a lonely point shows as a dot.
function path(values = [], scale = 100) {
	let d = "", pen = false;
	values.forEach((v, i) => {
		if (!Number.isNaN(v)) d += `${pen ? "L" : "M"}${i} ${(100 - v * scale).toFixed(1)}${pen ? "" : "h.01"}`;
		pen = !Number.isNaN(v);
	});
	return d;
}

function drawPlot(node, lines, told) {
	const all = (selector) => [...node.querySelectorAll(selector)], one = (selector) => node.querySelector(selector);
	const texts = told.texts || [], caption = node.firstChild, ruler = (i) => told.marks?.[i] ?? [0, ""];
	while (caption.children.length < texts.length) caption.append(h("span"), " ");
	texts.forEach(([label, value, line], i) => {
		const span = caption.children[i];
		if (!span.firstChild) span.append(h("i", { class: line || "" }), h("span"), " ", h("b"));
		put(span.children[1], label);
		put(span.children[2], value);
	});
	all(".rule").forEach((rule, i) => ["y1", "y2"].forEach((end) => mark(rule, end, 100 - 100 * ruler(i)[0])));
	all(".tick").forEach((tick, i) => {
		put(tick, ruler(i)[1]);
		tick.style.top = `${100 - 100 * ruler(i)[0]}%`;
	});
	all(".line").forEach((line, i) => mark(line, "d", path(lines[i])));
	mark(one(".area"), "d", told.area ? `M0 100${path(lines[0]).replace("M", "L").replace("h.01", "")}L118 100Z` : "");
	put(one(".none"), told.empty || "");
	mark(one("svg"), "aria-label", `${told.label}, last 60 s. ${told.empty || texts.map((t) => t.slice(0, 2).join(" ")).join(", ")}`);
}

function render({ model, el }) {
	const uid = `mqlab${++views}`, capacity = model.get("rows") || 500, $ = {};
	el.append(html(SKELETON));
	const box = el.lastElementChild;
	box.querySelectorAll("[data-r]").forEach((node) => { $[node.dataset.r] = node; });
	// The table stands on `base` (the ring, or what is held while someone looks at a row; newest last).
	let ring = [], base = ring, shown = ring, entered = 0, newer = 0, following = true;
	let match = null, topicFilter = "", selected = null, detail = null, tab = "", asked = 0;
	let paused = false, pausedAt = 0, waiting = [], last = Date.now(), scheduled = 0, dead = false, sent = 0, busy = false;
	let status = {}, plots = {}, meta = model.get("meta") || {};
	let dirty = new Set();
	const root = { path: "", kids: new Map() };
	let leaves = [], lines = [], treeAt = "", beyond = 0;
	const tree = new List($.tree, makeLeaf, fillLeaf), table = new List($.rows, makeRow, fillRow);
	$.plots.append(html(PLOT + PLOT));

	// Hearing from Python

	const say = (content) => model.send(content);

	function later(...parts) {
		parts.forEach((part) => dirty.add(part));
		if (!scheduled && !dead) scheduled = requestAnimationFrame(frame);
	}

	function heard(content, buffers) {
		last = Date.now();
		const { kind } = content;
		if (kind === "tick" && paused) {
			status = content.status; // the status line goes on counting
			waiting.push([content, buffers]);
			// Counts and lines are absolute: of what waits, only new names and the newest rows are needed.
			if (waiting.length > 200) waiting = waiting.filter(([c], i) => c.topics?.names.length || c.reset || i > 100);
			later("meta");
		} else if (kind === "tick") take(content, buffers);
		else if (kind === "message" && content.id === selected?.id) {
			detail = { ...content, bytes: buffers.length ? new Uint8Array(bytesOf(buffers[0])) : detail?.bytes };
			later("detail");
		} else if (kind === "published" && content.n === sent) {
			busy = false;
			tell(content.text, content.ok ? "ok" : "bad");
		} else if (kind === "frozen") {
			const href = URL.createObjectURL(new Blob([bytesOf(buffers[0])], { type: "text/html" }));
			h("a", { href, download: content.name }).click();
			setTimeout(() => URL.revokeObjectURL(href), 9999);
		}
	}

	function take(content, buffers) {
		const c = columns(content.columns, buffers);
		status = content.status;
		if (content.reset) {
			ring = [];
			if (following) base = shown = ring;
		}
		if (c.id?.length) addRows(content.names, c, content.reset);
		plots = c;
		if (content.topics) addTopics(content.topics, c);
		later("meta", "rows", "plots", content.topics && "tree");
	}

	function addRows(topics, c, again) {
		const added = Array.from(c.id, (id, i) => ({
			id, t: c.time[i], topic: topics[c.name[i]], qos: c.flags[i] & 3, flags: c.flags[i], size: c.size[i],
			stream: c.stream[i], ms: c.ms[i], bytes: c.payload.subarray(c.offset[i], c.offset[i + 1]),
		}));
		ring = ring.concat(added).slice(-capacity);
		if (following) {
			base = ring;
			shown = match ? ring.filter(match) : ring;
		} else if (!again) {
			// What is looked at stays: rows enter above it until the table has twice its size.
			const enter = added.slice(0, Math.max(0, 2 * capacity - base.length)), passing = match ? enter.filter(match) : enter;
			base = base.concat(enter);
			shown = match ? shown.concat(passing) : base;
			entered += passing.length;
			newer += added.length;
		}
	}

	function follow() {
		following = true;
		newer = entered = 0;
		base = ring;
		$.rows.scrollTop = 0;
		refilter();
	}

	function refilter() {
		match = compile($.filter.value, topicFilter);
		shown = match ? base.filter(match) : base;
		entered = 0;
		later("rows", "tree");
	}

	function pause() {
		paused = !paused;
		pausedAt = status.received || 0;
		waiting.splice(0).forEach(([content, buffers]) => take(content, buffers));
		put($.pause, paused ? "resume" : "pause");
		mark($.pause, "aria-pressed", paused);
		later("meta");
	}

	// Topics

	function addTopics(topics, c) {
		if (topics.start === 0) { // all of them: after a reload, or for another view of this model
			root.kids.clear();
			leaves = [];
		}
		topics.names.forEach((name, i) => {
			const levels = name.split("/");
			if (levels.length > DEPTH) levels.push(levels.splice(DEPTH - 1).join("/"));
			let node = root;
			levels.forEach((level, depth) => {
				const at = depth ? `${node.path}/${level}` : level, parent = node;
				if (!node.kids.has(level)) node.kids.set(level, { name: level, path: at, depth, parent, kids: new Map() });
				node = node.kids.get(level);
			});
			leaves[topics.start + i] = node;
			node.leaf = true;
		});
		beyond = topics.beyond;
		const clear = (node) => { node.count = 0; node.spark = new Float64Array(topics.bins); node.kids.forEach(clear); };
		clear(root);
		leaves.forEach((leaf, i) => {
			leaf.last = topics.last[i];
			for (let node = leaf; node; node = node.parent) {
				node.count += c.counts[i];
				for (let k = 0; k < topics.bins; k++) node.spark[k] += (c.sparks[i * topics.bins + k] * c.peaks[i]) / 255;
			}
		});
	}

	const isOpen = (node) => node.kids.size > 0 && ($.topicfilter.value.trim() !== "" || (node.open ?? leaves.length <= OPEN_UP_TO));
	const filterOf = (node) => (node.kids.size ? `${node.path}/#` : node.path);

	function drawTree() {
		const wanted = $.topicfilter.value.trim().toLowerCase();
		let hidden = 0;
		lines = [];
		const visit = (node, inside) => {
			const here = inside || node.path.toLowerCase().includes(wanted), start = lines.push(node);
			let any = here;
			node.kids.forEach((kid) => { any = visit(kid, here) || any; });
			if (!any) lines.length = start - 1;
			else if (!isOpen(node)) lines.length = start;
			if (!here && node.leaf) hidden++;
			return any;
		};
		root.kids.forEach((node) => visit(node, false));
		tree.draw(lines.length);
		put($.topicnote, (hidden ? `hides ${count(hidden)} of ` : "") + plural(leaves.length, "topic") + (beyond ? `, ${plural(beyond, "message")} on others` : ""));
	}

	function makeLeaf() {
		const node = html(`<div class="row" role="treeitem"><span class="tw"></span><span class="tn"></span><span class="cnt"></span>
<svg viewBox="0 0 29 100" preserveAspectRatio="none"><path class="line"/></svg><span class="lastv"></span></div>`).firstChild;
		node.parts = [...node.children];
		return node;
	}

	function fillLeaf(node, i) {
		const it = lines[i], open = isOpen(it), on = it.path === treeAt, peak = Math.max(...it.spark);
		const [arrow, name, messages, spark, newest] = node.parts;
		node.style.paddingLeft = `${it.depth * 14 + 6}px`;
		put(arrow, it.kids.size ? (open ? "▾" : "▸") : "·");
		put(name, visible(it.name) || "(empty level)");
		mark(name, "title", visible(it.path));
		put(messages, count(it.count));
		put(newest, visible(it.last ?? ""));
		mark(spark.firstChild, "d", peak ? path(it.spark, 88 / peak) : "");
		mark(node, "aria-level", it.depth + 1);
		mark(node, "aria-selected", on);
		mark(node, "aria-expanded", it.kids.size ? open : "undefined");
		node.id = on ? `${uid}t` : "";
		node.classList.toggle("on", topicFilter === filterOf(it));
	}

	function goTo(index) {
		treeAt = lines[index]?.path;
		tree.reveal(index);
		mark($.tree, "aria-activedescendant", `${uid}t`);
		later("tree");
	}

	function choose(node) {
		topicFilter = topicFilter === filterOf(node) ? "" : filterOf(node);
		refilter();
	}

	function fold(node, open) {
		node.open = open;
		later("tree");
	}

	function treeClick({ target }) {
		const row = target.closest(".row"), node = row && lines[row.index];
		if (!node) return;
		goTo(row.index);
		if (target.className === "tw" && node.kids.size) fold(node, !isOpen(node));
		else choose(node);
	}

	function treeKey(event) {
		const index = lines.findIndex((node) => node.path === treeAt), node = lines[index], next = tree.step(event, index), { key } = event;
		if (next !== undefined) return goTo(next);
		if (!node || !/^(Arrow(Righ|Lef)t|Enter| )$/.test(key)) return;
		event.preventDefault();
		if (key === "ArrowRight") return fold(node, true);
		if (key !== "ArrowLeft") return choose(node);
		return isOpen(node) || node.parent === root ? fold(node, false) : goTo(lines.indexOf(node.parent));
	}

	// Messages: line i of the table is the i-th newest

	const at = (i) => shown[shown.length - 1 - i];

	function makeRow() {
		return h("div", { class: "row", role: "row" }, ...CELLS.map(([name]) => h("span", { class: name, role: "gridcell" })));
	}

	function fillRow(node, i) {
		const row = at(i), on = row.id === selected?.id, c = node.children;
		[clock(row.t), visible(row.topic), preview(row), String(row.qos), "RD0".replace(/./g, (f, k) => (row.flags & (4 << k) ? f : "")),
			row.stream < 0 ? "–" : String(row.stream), ms(row.ms)].forEach((text, k) => put(c[k], text));
		mark(c[1], "title", c[1].shown);
		c[2].classList.toggle("odd", row.odd);
		node.classList.toggle("sel", on);
		mark(node, "aria-selected", on);
		mark(node, "aria-rowindex", i + 2);
		node.id = on ? `${uid}r` : "";
	}

	function select(row) {
		selected = row;
		detail = null;
		mark($.grid, "aria-activedescendant", row ? `${uid}r` : "");
		clearTimeout(asked);
		if (row) {
			following = false;
			asked = setTimeout(() => say({ kind: "message", id: row.id }), 150); // an arrow key held down asks once
			table.reveal(shown.length - 1 - shown.indexOf(row));
		}
		later("rows", "detail");
	}

	function rowKey(event) {
		const next = table.step(event, selected ? shown.length - 1 - shown.findIndex((row) => row.id === selected.id) : -1);
		if (next !== undefined && shown.length) settle(), select(at(next));
		else if (event.key === "Escape") newest();
	}

	const newest = () => follow(select(null));

	function scrolled() {
		if (!selected && following !== $.rows.scrollTop < ROW / 2 && !entered) following ? (following = false) : follow();
		later("rows");
	}

	function settle() { // the table grew above what is looked at: scroll by as much, so that nothing moves
		table.grow(shown.length);
		if (entered) $.rows.scrollTop += entered * ROW;
		entered = 0;
	}

	function drawRows() {
		settle();
		table.draw(shown.length);
		mark($.grid, "aria-rowcount", shown.length + 1);
		const hidden = base.length - shown.length;
		put($.hides, match ? `hides ${count(hidden)} of ${plural(base.length, "row")}` : "");
		$.chosen.hidden = !topicFilter;
		put($.chosen, `${visible(topicFilter)} ✕`);
		$.pill.hidden = !newer;
		put($.pill, `↑ ${count(newer)} newer`);
		$.blank.hidden = shown.length > 0;
		const empty = hidden ? `The filter hides all ${plural(hidden, "row")}.` : status.received ? "…" : "";
		$.blank.replaceChildren(...(empty ? [empty] : [h("b", {}, visible(meta.waiting || "")), h("code", {}, visible(meta.hint || ""))]));
	}

	// The selected message

	function drawDetail() {
		const row = selected, bytes = detail?.bytes || row?.bytes;
		const whole = row && bytes.length >= row.size, text = row && utf8(bytes, whole);
		const json = whole && text?.split(/[[{]/).length < 1000 ? parsed(text) : null; // indenting costs depth squared
		const forms = !row ? {} : {
			JSON: () => (json ? lined(JSON.stringify(json.value, null, 2)) : whole ? "not JSON" : "not all here: fetch it"),
			text: () => (text === null ? "not UTF-8: see hex" : lined(text)),
			hex: () => hexdump(bytes),
			properties: () => (detail?.properties || []).map((pair) => pair.map(visible).join("  ")).join("\n") || "no MQTT properties",
		};
		const mode = tab || (json ? "JSON" : text === null ? "hex" : "text");
		[...$.tabs.children].forEach((node) => mark(node, "aria-pressed", !!row && node.textContent === mode));
		put($.body, row ? forms[mode]() || "(empty payload)" : "");
		$.fetch.hidden = !row || whole || !!detail?.bytes;
		put($.fetch, row ? `fetch ${size(Math.min(row.size, 65536))} of ${size(row.size)}` : "");
		const pairs = !row ? [["", "Click a row or use the arrow keys; Esc lets the newest run again."]] : [["topic", row.topic],
			["arrived", `${clock(row.t)} UTC`], ["payload", size(row.size) + (whole ? "" : `, first ${size(bytes.length)} here`)],
			["QoS", [row.qos, ...["retained", "dup", "early data"].filter((_, k) => row.flags & (4 << k))].join(", ")],
			["stream", row.stream < 0 ? "" : row.stream], ["latency", ms(row.ms) && `${ms(row.ms)} ms`], ...(detail?.facts || [])];
		$.facts.replaceChildren(...pairs.filter((pair) => pair[1] !== "").flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, visible(v))]));
	}

	// Header, status line, dashboard

	function drawMeta() {
		const silent = Date.now() - last, gone = silent > STALE && !meta.closed, state = meta.state || {};
		const banner = gone ? { tone: "warn", text: `No news from the kernel for ${lasted(silent)}: busy or gone. Seen last:` } : meta.banner;
		mark(box, "aria-label", visible(meta.label || ""));
		mark($.dot, "data-tone", gone ? "warn" : state.tone);
		put($.word, gone ? "no news" : state.word || "");
		put($.title, visible(meta.title || ""));
		const chips = [...(meta.chips || [])];
		if (meta.since) chips.push({ text: `${meta.lasting} ${lasted((meta.until || Date.now()) - meta.since)}`, tone: meta.until ? "" : "ok" });
		if (paused) chips.push({ text: `paused · ${count(status.received - pausedAt)} newer wait`, tone: "warn" });
		spans($.chips, chips, "chip");
		$.banner.hidden = !banner;
		put($.banner, visible(banner?.text || ""));
		mark($.banner, "data-tone", banner?.tone);
		$.freeze.disabled = gone;
		spans($.status, [...(status.parts || []), { text: `newest ${plural(ring.length, "row")} here` }, ...(meta.notes || [])]);
		$.publish.disabled = busy || !meta.can_publish;
	}

	function drawFoot() {
		put($.hsline, visible(meta.handshake || ""));
		for (const name of ["events", "errors"]) {
			const item = (it) => h("li", { "data-tone": it.tone || "" }, h("time", {}, clock(it.t, 19)), ` ${visible(it.text)}`);
			$[name].replaceChildren(...(meta[name] || []).map(item));
		}
		put($.errorstitle, meta.errors?.length ? "errors" : "no errors");
	}

	function spans(parent, items, cls = "") {
		while (parent.children.length > items.length) parent.lastChild.remove();
		while (parent.children.length < items.length) parent.append(h("span", { class: cls }));
		items.forEach(({ text, tone = "", title = "" }, i) => {
			put(parent.children[i], visible(text));
			mark(parent.children[i], "data-tone", tone);
			mark(parent.children[i], "title", title);
		});
	}

	function publish(event) {
		event.preventDefault();
		busy = true;
		tell("sending…", "");
		say({ kind: "publish", n: ++sent, topic: $.ptopic.value, payload: $.ppayload.value, qos: +$.pqos.value, retain: $.pretain.checked });
	}

	function tell(text, tone) {
		put($.outcome, text);
		mark($.outcome, "data-tone", tone);
		later("meta");
	}

	// views/card.py wrote and escaped this: the only markup taken from Python.
	const drawCard = () => {
		if ($.hs.open) $.card.innerHTML = model.get("card") || "";
		$.card.firstChild?.classList.toggle("mql-dark", box.dataset.dark === "true");
	};

	// Hosts name themes differently; the background says whether it is dark.
	function theme() {
		const [r, g, b] = getComputedStyle(box).backgroundColor.match(/[\d.]+/g) || [255];
		mark(box, "data-dark", 0.3 * r + 0.59 * g + 0.11 * b < 128);
	}

	function frame() {
		const parts = dirty;
		scheduled = 0;
		dirty = new Set();
		const draw = { meta: drawMeta, foot: drawFoot, rows: drawRows, tree: drawTree, detail: drawDetail };
		for (const name in draw) if (parts.has(name)) draw[name]();
		if (parts.has("plots")) [...$.plots.children].forEach((node, i) => drawPlot(node, i ? LINES.map((l) => plots[l]) : [plots.rate], status.plots?.[i] || {}));
	}

	const clicks = { pause, freeze: () => say({ kind: "freeze" }), chosen: () => refilter((topicFilter = "")), pill: newest,
		fetch: () => say({ kind: "message", id: selected.id, payload: true }), tree: treeClick,
		rows: ({ target }) => { const row = target.closest(".row"); if (row) { $.grid.focus({ preventScroll: true }); select(at(row.index)); } } };
	for (const name of ["JSON", "text", "hex", "properties"]) {
		const node = h("button", { "aria-pressed": false }, name);
		node.addEventListener("click", () => { tab = name; later("detail"); });
		$.tabs.append(node);
	}
	// JupyterLab's shortcuts would act on keys pressed here.
	for (const node of box.querySelectorAll("[tabindex],button,summary,input,select")) node.dataset.lmSuppressShortcuts = true;
	const drawnTree = () => later("tree");
	for (const [name, event, handler] of [["filter", "input", refilter], ["topicfilter", "input", drawnTree], ["tree", "scroll", drawnTree],
		["rows", "scroll", scrolled], ["grid", "keydown", rowKey], ["tree", "keydown", treeKey], ["form", "submit", publish], ["hs", "toggle", drawCard],
		...Object.entries(clicks).map(([name, handler]) => [name, "click", handler])]) $[name].addEventListener(event, handler);
	const onMeta = () => { last = Date.now(); meta = model.get("meta") || {}; later("meta", "foot", "rows"); };
	const heeds = [["msg:custom", heard], ["change:meta", onMeta], ["change:card", drawCard]];
	heeds.forEach(([event, handler]) => model.on(event, handler));
	const second = setInterval(() => { theme(); later("meta"); }, 1000);
	const resized = new ResizeObserver(() => later("rows", "tree"));
	resized.observe(box);
	const saved = model.get("snapshot");
	if (saved?.content) take(saved.content, saved.buffers);
	$.hs.hidden = $.foot.hidden = !meta.dashboard;
	theme();
	later("meta", "foot", "rows", "tree", "plots", "detail");
	say({ kind: "hello" }); // Python answers with all it has

	return () => {
		dead = true;
		cancelAnimationFrame(scheduled);
		clearInterval(second);
		clearTimeout(asked);
		resized.disconnect();
		heeds.forEach(([event, handler]) => model.off(event, handler));
		box.remove();
	};
}
