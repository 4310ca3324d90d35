// The reference strips of the IP-Adapter accordion: adding pictures by dropping, pasting and choosing, removing them.
// A unit's state is its hidden text box (a JSON array of references); the server draws the strip from it.

const ipadapterPage = (() => {
    const ACCORDION = "[id$=_ipadapter].input-accordion";
    const UNIT = ".ipadapter-unit";
    const DROP_ZONE = ".ipadapter-references";
    const MESSAGE = ".ipadapter-references .ipadapter-message [role=status]";
    const UPLOAD_PATIENCE_MS = 120000;
    const MAX_FILE_BYTES = 128 * 1024 * 1024;
    const loadedFor = new Map();
    let hovered = null;
    let focusAfterRemoval = null;

    function textArea(unit) {
        return unit.querySelector(".ipadapter-images textarea");
    }

    function references(unit) {
        try {
            const read = JSON.parse(textArea(unit).value || "[]");
            return Array.isArray(read) ? read : [];
        } catch {
            return [];
        }
    }

    function setText(area, text) {
        area.value = text;
        area.dispatchEvent(new Event("input", {bubbles: true}));
    }

    function setReferences(unit, items) {
        setText(textArea(unit), items.length ? JSON.stringify(items) : "");
    }

    function say(unit, sentence) {
        const line = unit.querySelector(MESSAGE);
        if (line) line.textContent = sentence;
    }

    const pause = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));

    function setBusy(unit, busy) {
        unit.querySelector(DROP_ZONE)?.classList.toggle("ipadapter-busy", busy);
        unit.querySelector(".ipadapter-strip")?.setAttribute("aria-busy", String(busy));
    }

    // Files go to the server one at a time through the unit's inbox, which the answer empties; whatever changes the
    // references takes its turn, so that no answer overwrites another's.
    let turn = Promise.resolve();
    function inTurn(unit, action) {
        turn = turn.then(action).catch(error => say(unit, error.message)).finally(() => setBusy(unit, false));
    }

    function readFile(file) {
        return new Promise((resolve, reject) => {
            const reader = new FileReader();
            reader.onload = () => resolve(reader.result);
            reader.onerror = () => reject(new Error(`${file.name} could not be read: ${reader.error.message}.`));
            reader.readAsDataURL(file);
        });
    }

    async function send(unit, file) {
        if (file.size > MAX_FILE_BYTES) {
            return `${file.name} is a file of ${file.size} bytes; at most ${MAX_FILE_BYTES} are read. Save it smaller.`;
        }
        const inbox = unit.querySelector(".ipadapter-inbox textarea");
        setText(inbox, JSON.stringify({name: file.name, data: await readFile(file)}));
        const until = Date.now() + UPLOAD_PATIENCE_MS;
        while (inbox.value) {
            if (Date.now() > until) {
                setText(inbox, "");
                throw new Error(`${file.name} got no answer from the server; try again.`);
            }
            await pause(50);
        }
        await pause(50);
        return unit.querySelector(MESSAGE).textContent;
    }

    function addFiles(unit, files) {
        const list = Array.from(files);
        setBusy(unit, true);
        inTurn(unit, async() => {
            say(unit, "");
            const sentences = [];
            for (const file of list) {
                setBusy(unit, true);
                sentences.push(await send(unit, file));
            }
            say(unit, sentences.filter(Boolean).join(" "));
        });
    }

    function chooseFiles(unit) {
        const chooser = document.createElement("input");
        chooser.type = "file";
        chooser.accept = "image/*";
        chooser.multiple = true;
        chooser.addEventListener("change", () => addFiles(unit, chooser.files));
        chooser.click();
    }

    async function addAddress(unit, address) {
        try {
            const answer = await fetch(address);
            if (!answer.ok) throw new Error("status " + answer.status);
            addFiles(unit, [new File([await answer.blob()], "dropped")]);
        } catch {
            say(unit, "The dropped picture's address could not be read; save the picture and drop the file.");
        }
    }

    function remove(unit, index) {
        inTurn(unit, () => {
            const items = references(unit);
            items.splice(index, 1);
            focusAfterRemoval = {unit, index: Math.min(index, items.length - 1)};
            say(unit, "");
            setReferences(unit, items);
        });
    }

    function onClick(event) {
        const target = event.target;
        if (!(target instanceof Element)) return;
        const accordion = target.closest(ACCORDION);
        if (accordion && target.closest(".label-wrap")) setTimeout(() => load(accordion, true), 0);
        const unit = target.closest(UNIT);
        if (!unit) return;
        if (target.closest(".ipadapter-add")) {
            chooseFiles(unit);
        } else if (target.closest(".ipadapter-remove")) {
            remove(unit, Number(target.closest(".ipadapter-remove").dataset.index));
        } else if (target.closest(".ipadapter-clear")) {
            inTurn(unit, () => {
                say(unit, "");
                setReferences(unit, []);
            });
        }
    }

    function onKeyDown(event) {
        if (event.key !== "Delete" && event.key !== "Backspace") return;
        const button = event.target instanceof Element && event.target.closest(".ipadapter-remove");
        if (button) {
            event.preventDefault();
            remove(button.closest(UNIT), Number(button.dataset.index));
        }
    }

    function isPicture(file) {
        return file.type.startsWith("image/");
    }

    function onPaste(event) {
        const files = Array.from(event.clipboardData?.files ?? []).filter(isPicture);
        const focused = document.activeElement?.closest(DROP_ZONE);
        const zone = focused ?? (hovered?.isConnected && hovered.offsetParent ? hovered : null);
        if (!files.length || !zone) return;
        // The host pastes into the first free image field of the page unless this is the end of it.
        event.preventDefault();
        event.stopImmediatePropagation();
        addFiles(zone.closest(UNIT), files);
    }

    function dropZone(event) {
        return event.target instanceof Element ? event.target.closest(DROP_ZONE) : null;
    }

    function carriesPicture(transfer) {
        return Array.from(transfer?.types ?? []).some(type => type === "Files" || type === "text/uri-list");
    }

    function unmark() {
        for (const zone of document.querySelectorAll(".ipadapter-dragging")) {
            zone.classList.remove("ipadapter-dragging");
        }
    }

    function onDragOver(event) {
        unmark();
        const zone = dropZone(event);
        if (!zone || !carriesPicture(event.dataTransfer)) return;
        event.preventDefault();
        event.stopPropagation();
        event.dataTransfer.dropEffect = "copy";
        zone.classList.add("ipadapter-dragging");
    }

    function onDragEnd(event) {
        if (event.type !== "dragleave" || !event.relatedTarget) unmark();
    }

    function onDrop(event) {
        onDragEnd(event);
        const zone = dropZone(event);
        if (!zone || !carriesPicture(event.dataTransfer)) return;
        event.preventDefault();
        event.stopPropagation();
        const unit = zone.closest(UNIT);
        if (event.dataTransfer.files.length) {
            addFiles(unit, event.dataTransfer.files);
        } else {
            addAddress(unit, event.dataTransfer.getData("text/uri-list").split("\n")[0]);
        }
    }

    // What the adapter list and the previews depend on beside the accordion itself: the chosen checkpoint, and the last
    // result, because some hosts load a checkpoint only with the first picture.
    function surroundings(accordion) {
        const result = document.querySelector(`#html_info_${accordion.id.replace("_ipadapter", "")} p`);
        const checkpoint = document.querySelector("#setting_sd_model_checkpoint input");
        return (checkpoint?.value ?? "") + (result?.textContent ?? "");
    }

    function isCheckpointLoading() {
        const status = document.querySelector("#setting_sd_model_checkpoint > .wrap");
        return Boolean(status && !status.classList.contains("hide"));
    }

    function load(accordion, always) {
        const now = surroundings(accordion);
        if (!accordion.querySelector(".label-wrap.open") || isCheckpointLoading()) return;
        if (!always && loadedFor.get(accordion.id) === now) return;
        loadedFor.set(accordion.id, now);
        accordion.querySelector(".ipadapter-load")?.click();
    }

    function onPointerOver(event) {
        if (!(event.target instanceof Element)) return;
        hovered = event.target.closest(DROP_ZONE);
        const accordion = event.target.closest(ACCORDION);
        if (accordion) load(accordion, false);
    }

    // After the server has redrawn the page: read the lists again if something changed, keep the keyboard where it was,
    // and mark the tabs of units that act.
    function afterUpdate() {
        for (const accordion of document.querySelectorAll(ACCORDION)) load(accordion, false);
        if (focusAfterRemoval) {
            const {unit, index} = focusAfterRemoval;
            focusAfterRemoval = null;
            const next = unit.querySelectorAll(".ipadapter-remove")[index] ?? unit.querySelector(".ipadapter-add");
            next?.focus({preventScroll: true});
        }
        for (const tabs of document.querySelectorAll(".ipadapter-tabs")) {
            const buttons = tabs.querySelectorAll(".tab-nav > button");
            tabs.querySelectorAll(UNIT).forEach((unit, index) => {
                const enabled = unit.querySelector(".ipadapter-enabled input")?.checked;
                const acts = Boolean(enabled && references(unit).length);
                buttons[index]?.classList.toggle("ipadapter-acting", acts);
            });
        }
    }

    function confirmDeletion(event) {
        const button = event.target instanceof Element && event.target.closest(".ipadapter-delete-store");
        if (!button || window.confirm("Delete every stored reference picture from this computer?")) return;
        event.preventDefault();
        event.stopImmediatePropagation();
    }

    document.addEventListener("click", confirmDeletion, true);
    document.addEventListener("click", onClick);
    document.addEventListener("keydown", onKeyDown);
    document.addEventListener("paste", onPaste, true);
    document.addEventListener("dragover", onDragOver, true);
    document.addEventListener("dragleave", onDragEnd, true);
    document.addEventListener("dragend", onDragEnd, true);
    document.addEventListener("drop", onDrop, true);
    document.addEventListener("pointerover", onPointerOver, {passive: true});
    onAfterUiUpdate(afterUpdate);

    return {addFiles};
})();
