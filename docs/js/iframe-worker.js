// Worker in an iframe. A browser refuses workers to pages that are opened from the disk, and the search needs one.
// The theme's plugin `offline` would load such a script from another site.
(() => {
  if (location.protocol !== "file:") return;

  const send = (data) => parent.postMessage(data, "*");
  const load = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((loaded) => {
    const script = document.createElement("script");
    script.src = url;
    script.onload = loaded;
    document.body.appendChild(script);
  })), Promise.resolve());

  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      this.inner = this.frame.contentWindow;
      window.addEventListener("message", (event) => {
        if (event.source !== this.inner) return;
        this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        if (this.onmessage) this.onmessage(event);
      });
      const page = this.inner.document;
      page.open();
      page.write(`<html><body><script>postMessage = ${send}; importScripts = ${load}</scr` +
        `ipt><script src="${url}"></scr` + "ipt></body></html>");
      page.close();
      this.ready = new Promise((loaded) => { this.inner.onload = loaded; });
    }

    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() { this.frame.remove(); }
  };
})();
