"use strict";
(() => {
  const root = document.getElementById("ha-beat");
  const byId = (id) => document.getElementById(id);
  const INTERVAL = 1000;
  const PATIENCE = 5000;
  // The server itself waits for the leader's answer.
  const PATIENCE_WITH_A_REQUEST = 30000;

  const lasting = (ms) => {
    const s = Math.max(0, ms) / 1000;
    if (s < 1) return `${Math.round(ms)} ms`;
    if (s < 120) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
    if (s < 7200) return `${Math.round(s / 60)} min`;
    return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
  };
  const ago = (ms) => (ms < 3000 ? "now" : `${lasting(ms)} ago`);
  const full = (ms) => new Date(ms).toLocaleString([], { dateStyle: "full", timeStyle: "long" });
  // The date is told where it is another than today's.
  const clock = (ms) => {
    const at = new Date(ms);
    const sameDay = at.toDateString() === new Date().toDateString();
    return at.toLocaleString([], sameDay ? { timeStyle: "medium" } : { dateStyle: "short", timeStyle: "medium" });
  };

  const cell = (value, title) => {
    const td = document.createElement("td");
    if (value instanceof Node) td.append(value);
    else td.textContent = value;
    if (title) td.title = title;
    return td;
  };
  const name = (value, title) => {
    const td = cell(value, title);
    td.className = "ha-name";
    return td;
  };
  const number = (value) => {
    const td = cell(value);
    td.className = "ha-number";
    return td;
  };
  const tag = (text, kind) => {
    const span = document.createElement("span");
    span.className = `ha-tag ${kind}`;
    span.textContent = text;
    return span;
  };
  const KINDS = { enqueued: "ha-good", skipped: "ha-warn", uncertain: "ha-bad", leader: "ha-good" };
  const verdict = (o) => {
    const td = cell(tag(o.verdict, KINDS[o.verdict] || ""));
    const more = (o.count > 1 ? ` ${o.count} occurrences` : "") + (o.reason ? ` ${o.reason}` : "");
    td.append(more);
    return td;
  };
  const fill = (id, rows, empty) => {
    const body = byId(id);
    const made = rows.map(({ cells, className }) => {
      const tr = document.createElement("tr");
      if (className) tr.className = className;
      tr.append(...cells);
      return tr;
    });
    if (!made.length) {
      const tr = document.createElement("tr");
      const td = cell(empty);
      td.className = "ha-empty";
      td.colSpan = byId(id).closest("table").querySelectorAll("th").length;
      tr.append(td);
      made.push(tr);
    }
    body.replaceChildren(...made);
  };
  const link = (text, href) => {
    const a = document.createElement("a");
    a.textContent = text;
    a.href = href;
    return a;
  };
  const taskLink = (line) =>
    root.dataset.taskUrl && /^\d+$/.test(line.entry) ? link(line.name, `${root.dataset.taskUrl}${line.entry}/change/`) : line.name;
  const health = (replica) => {
    if (replica.not_ready.length) {
      const span = document.createElement("span");
      span.className = "ha-bad";
      span.textContent = replica.not_ready.map((problem) => problem.why).join("; ");
      return span;
    }
    return /^https?:/.test(replica.http) ? link(replica.http, replica.http) : replica.http || "ready";
  };

  const say = (text) => {
    byId("ha-error").hidden = !text;
    if (byId("ha-error").textContent !== text) byId("ha-error").textContent = text;
    // What was so is not known to be so any more.
    if (text) byId("ha-dot").className = "ha-dot";
  };
  const ask = async (url, patience, options) => {
    try {
      return await fetch(url, { ...options, signal: AbortSignal.timeout(patience) });
    } catch (error) {
      throw error.name === "TimeoutError" ? new Error("the server does not answer") : error;
    }
  };
  const refusal = (answer) => {
    if (answer.redirected) return "you are not logged in any more";
    return answer.status === 403 ? "you may not do this" : `the server answered ${answer.status}`;
  };
  const sayState = (text) => {
    // Only a change is announced to a screen reader.
    if (byId("ha-state").dataset.text !== text) {
      byId("ha-state").dataset.text = text;
      byId("ha-state").textContent = text;
    }
  };

  const show = (data) => {
    say(data.error);
    if (data.error) return;
    const { now_ms: now, lease, paused } = data;
    let state = `${data.cluster}: ${data.leader ? `${data.leader} leads` : "nobody leads"}`;
    if (data.entries !== null) state += `; ${data.entries} ${data.entries === 1 ? "entry" : "entries"}`;
    if (paused) state += `; paused by ${paused.by || "somebody"}${paused.reason ? `: ${paused.reason}` : ""}`;
    sayState(state);
    byId("ha-dot").className = `ha-dot ${!data.leader ? "ha-bad" : paused ? "ha-warn" : "ha-good"}`;
    byId("ha-updated").textContent = `Updated at ${clock(now)}, your time.`;
    byId("ha-lease").textContent = !lease
      ? "There is no lease."
      : lease.state === "held"
        ? `Epoch ${lease.epoch}, held for ${lasting(now - lease.since_ms)}, renewed ${lasting(now - (lease.renewed_ms || lease.since_ms))} ago; it lasts ${lasting(lease.ttl_ms)}.`
        : `The lease was released: ${lease.why || "no reason given"}.`;
    if (byId("ha-control")) {
      for (const id of ["ha-pause", "ha-reason-label"]) byId(id).hidden = Boolean(paused);
      byId("ha-resume").hidden = !paused;
    }
    fill("ha-replicas", data.members.map((r) => ({
      className: r.role === "leader" ? "ha-leader" : "",
      cells: [
        cell(r.id), cell(tag(r.role, KINDS[r.role] || "")), cell(`${r.host} (${r.pid})`), cell(r.version),
        number(lasting(now - r.since_ms)), number(ago(now - r.seen_ms)),
        number(`${r.clock_offset_ms >= 0 ? "+" : ""}${r.clock_offset_ms} ms`),
        cell(health(r)),
      ],
    })), "No replica has been seen lately");
    fill("ha-recent", data.recent.map((o) => ({
      cells: [
        name(taskLink(o)), cell(clock(o.at_ms), `${full(o.at_ms)} ${o.task_id}`), verdict(o),
        number(o.verdict === "enqueued" ? lasting(o.lateness_s * 1000) : ""), cell(o.by),
      ],
    })), "Nothing was due yet");
    fill("ha-upcoming", data.upcoming.map((u) => ({
      cells: [
        name(taskLink(u), u.task), cell(clock(u.at_ms), full(u.at_ms)),
        number(u.at_ms > now ? lasting(u.at_ms - now) : "now"),
      ],
    })), "Nothing is scheduled");
    fill("ha-terms", [...data.terms].reverse().map((t) => {
      const [why, endWhy] = [cell(t.why), cell(t.end_why)];
      why.className = endWhy.className = "ha-why";
      const end = t.ended_ms === null ? cell("now") : cell(clock(t.ended_ms), full(t.ended_ms));
      return { cells: [cell(t.by), number(String(t.epoch)), cell(clock(t.began_ms), full(t.began_ms)), why, end, endWhy] };
    }), "No term is recorded");
  };

  const look = async () => {
    try {
      const answer = await ask(root.dataset.url, PATIENCE, { headers: { Accept: "application/json" }, cache: "no-store" });
      if (!answer.ok || answer.redirected) throw new Error(refusal(answer));
      show(await answer.json());
    } catch (error) {
      say(`This page is not up to date: ${error.message}`);
    }
  };
  const loop = async () => {
    if (!document.hidden) await look();
    setTimeout(loop, INTERVAL);
  };

  const form = byId("ha-control");
  if (form) {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const button = event.submitter;
      if (!button || (button.dataset.confirm && !window.confirm(button.dataset.confirm))) return;
      const body = new FormData(form);
      body.set("action", button.value);
      for (const each of form.querySelectorAll("button")) each.disabled = true;
      byId("ha-answer").textContent = "…";
      try {
        const answer = await ask(root.dataset.controlUrl, PATIENCE_WITH_A_REQUEST, { method: "POST", body });
        const told = !answer.redirected && answer.headers.get("Content-Type") === "application/json";
        byId("ha-answer").textContent = told ? (await answer.json()).line : refusal(answer);
        byId("ha-reason").value = "";
      } catch (error) {
        byId("ha-answer").textContent = error.message;
      }
      for (const each of form.querySelectorAll("button")) each.disabled = false;
      await look();
    });
  }

  show(JSON.parse(byId("ha-data").textContent));
  setTimeout(loop, INTERVAL);
})();
