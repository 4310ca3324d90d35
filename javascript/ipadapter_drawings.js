// What the IP-Adapter accordion asks the server for: the adapter lists, and drawings of units (strip, preview, the line
// about files). One drawing of a unit at a time, because answers may come back in another order than they were asked
// for, and what is shown must be what a job would use.

const ipadapterDrawings = (() => {
    const ACCORDION = "[id$=_ipadapter].input-accordion";
    const UNIT = ".ipadapter-unit";
    const PATIENCE_MS = 30000;
    const SETTLING_MS = 300;
    const drawings = new Map();
    const loadedFor = new Map();
    let wasCheckpointLoading = false;

    const pause = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));

    function drawing(id) {
        const fresh = {turn: 0, label: "", wanted: false, busy: false, analyses: false, pending: 0};
        if (!drawings.has(id)) drawings.set(id, fresh);
        return drawings.get(id);
    }

    // The number of a drawing, whether it may take its time to analyse faces, and the size of the picture to be made
    // (events.py, read_turn).
    function label(id, state) {
        const size = ipadapterHost.size(document.getElementById(id));
        return state.turn + (state.analyses ? "+" : "") + (size ? "@" + size : "");
    }

    // Something of the unit has changed. What changes while a drawing is under way is in the next one.
    function redraw(id) {
        drawing(id).wanted = true;
        setTimeout(() => draw(id), 0);
    }

    function redrawUnits(accordion) {
        for (const unit of document.querySelectorAll(UNIT)) {
            if (!accordion || unit.id.startsWith(accordion + "_unit")) redraw(unit.id);
        }
    }

    async function draw(id) {
        const state = drawing(id);
        if (state.busy) return;
        state.busy = true;
        while (state.wanted) {
            state.wanted = false;
            state.turn += 1;
            state.label = label(id, state);
            document.getElementById(id + "_draw")?.click();
            followUp(state, await answer(id, state.label));
        }
        state.busy = false;
    }

    // Pictures that are still to be analysed are drawn again, as long as that gets on.
    function followUp(state, pending) {
        state.analyses = pending > 0 && (!state.analyses || pending < state.pending);
        state.pending = pending;
        if (state.analyses) state.wanted = true;
    }

    // Strip and preview bring their drawing's number back; one that gets lost is not waited for longer than this. The
    // keyboard stays where it was in what the drawing replaces. Returns how many pictures are still to be analysed.
    async function answer(id, turn) {
        const until = Date.now() + PATIENCE_MS;
        while (Date.now() < until) {
            const unit = document.getElementById(id);
            const parts = [".ipadapter-strip", ".ipadapter-seen"].map(part => unit?.querySelector(part)?.dataset);
            if (parts.every(part => part?.turn === turn)) {
                markFaces(unit);
                ipadapterPage.restoreFocus(unit);
                ipadapterFaces.restoreFocus(unit);
                ipadapterKeypoints.restore(unit);
                ipadapterAdvice.refresh();
                return Number(parts[0].pending);
            }
            await pause(30);
        }
        return 0;
    }

    // The fields of a face are shown where they mean something.
    function markFaces(unit) {
        const faces = unit.querySelector(".ipadapter-strip")?.dataset.faces === "true";
        unit.classList.toggle("ipadapter-with-faces", faces);
        const net = unit.querySelector(".ipadapter-strip")?.dataset.net === "true";
        unit.classList.toggle("ipadapter-with-net", net);
    }

    // Called by the page with what it is about to send: the drawing's number goes along, in the first place.
    function numbered(id, values) {
        return [drawing(id).label, ...values.slice(1)];
    }

    // What the lists and drawings depend on beside the accordion itself: the chosen checkpoint, and the last job, failed
    // or not, because some hosts load a checkpoint only with the first picture.
    function surroundings(accordion) {
        const tab = accordion.id.replace("_ipadapter", "");
        const result = document.querySelector(`#html_info_${tab} p`)?.textContent ?? "";
        const log = document.querySelector(`#html_log_${tab} .error`)?.textContent ?? "";
        const checkpoint = document.querySelector("#setting_sd_model_checkpoint input")?.value ?? "";
        return [checkpoint, result, log].join("\n");
    }

    function isCheckpointLoading() {
        const status = document.querySelector("#setting_sd_model_checkpoint > .wrap");
        return Boolean(status && !status.classList.contains("hide"));
    }

    // Read the adapter lists, where the accordion is open; their answer asks for new drawings.
    function load(accordion, always) {
        const now = surroundings(accordion);
        if (!accordion.querySelector(".label-wrap.open") || isCheckpointLoading()) return;
        if (!always && loadedFor.get(accordion.id) === now) return;
        loadedFor.set(accordion.id, now);
        // A checkpoint that was just chosen is known to the server only by the request that is now on its way.
        setTimeout(() => {
            if (!isCheckpointLoading()) accordion.querySelector(".ipadapter-load")?.click();
        }, always ? 0 : SETTLING_MS);
    }

    function markActingUnits() {
        for (const tabs of document.querySelectorAll(".ipadapter-tabs")) {
            const buttons = tabs.querySelectorAll(".tab-nav > button");
            tabs.querySelectorAll(UNIT).forEach((unit, index) => {
                const enabled = unit.querySelector(".ipadapter-enabled input")?.checked;
                const acts = Boolean(enabled && ipadapterPage.references(unit).length);
                buttons[index]?.classList.toggle("ipadapter-acting", acts);
            });
        }
    }

    function afterUpdate() {
        const isLoading = isCheckpointLoading();
        if (wasCheckpointLoading && !isLoading) loadedFor.clear();
        wasCheckpointLoading = isLoading;
        for (const accordion of document.querySelectorAll(ACCORDION)) load(accordion, false);
        markActingUnits();
        for (const unit of document.querySelectorAll(UNIT)) markFaces(unit);
    }

    function onClick(event) {
        const heading = event.target instanceof Element && event.target.closest(".label-wrap");
        const accordion = heading && heading.closest(ACCORDION);
        if (accordion) setTimeout(() => load(accordion, true), 0);
    }

    function onPointerOver(event) {
        const accordion = event.target instanceof Element && event.target.closest(ACCORDION);
        if (accordion) load(accordion, false);
    }

    document.addEventListener("click", onClick);
    document.addEventListener("pointerover", onPointerOver, {passive: true});
    onAfterUiUpdate(afterUpdate);

    return {redraw, redrawUnits, numbered};
})();
