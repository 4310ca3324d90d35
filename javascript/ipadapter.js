// The reference strips of the IP-Adapter accordion: adding pictures by dropping, pasting and choosing, removing them.
// A unit's state is its hidden text box (a JSON array of references); the server draws the strip from it
// (ipadapter_drawings.js).

const ipadapterPage = (() => {
    const UNIT = ".ipadapter-unit";
    const DROP_ZONE = ".ipadapter-references";
    const MESSAGE = ".ipadapter-references .ipadapter-message [role=status]";
    const UPLOAD_PATIENCE_MS = 120000;
    const UPLOAD_NOTICE_MS = 10000;
    const KEY_CHARACTERS = 24;
    const MAX_FILE_BYTES = 128 * 1024 * 1024;
    let hovered = null;
    let focused = null;

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
        const started = Date.now();
        while (inbox.value) {
            const waited = Date.now() - started;
            if (waited > UPLOAD_PATIENCE_MS) {
                setText(inbox, "");
                throw new Error(`${file.name} got no answer from the server; try again.`);
            }
            if (waited > UPLOAD_NOTICE_MS) say(unit, `${file.name} is still on its way to the server.`);
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
                const before = references(unit).length;
                sentences.push(await send(unit, file));
                ipadapterFaces.added(unit, before, references(unit).length);
            }
            say(unit, sentences.filter(Boolean).join(" "));
            // The references may be the same as before and their pictures not: one that was missing is back.
            ipadapterDrawings.redraw(unit.id);
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

    // The pose photo of an InstantID unit goes through a text box of its own; the server draws it with the preview.
    function choosePose(unit) {
        const chooser = document.createElement("input");
        chooser.type = "file";
        chooser.accept = "image/*";
        chooser.addEventListener("change", async() => {
            const file = chooser.files[0];
            if (file.size > MAX_FILE_BYTES) {
                say(unit, `${file.name} is a file of ${file.size} bytes; at most ${MAX_FILE_BYTES} are read.`);
                return;
            }
            const inbox = unit.querySelector(".ipadapter-pose-inbox textarea");
            setText(inbox, JSON.stringify({name: file.name, data: await readFile(file)}));
        });
        chooser.click();
    }

    function removePose(unit) {
        setText(unit.querySelector(".ipadapter-pose textarea"), "");
        ipadapterDrawings.redraw(unit.id);
    }

    function firstAddress(list) {
        const lines = list.split("\n").map(line => line.trim());
        return lines.find(line => /^(https?|data|blob):/i.test(line)) ?? "";
    }

    async function addAddress(unit, address) {
        try {
            if (!address) throw new Error("no address");
            const answer = await fetch(address);
            if (!answer.ok) throw new Error("status " + answer.status);
            addFiles(unit, [new File([await answer.blob()], "dropped")]);
        } catch {
            say(unit, "The dropped picture's address could not be read; save the picture and drop the file.");
        }
    }

    // As `strip.removal_key`: the strip may be older than the references, so places say nothing.
    function removalKey(reference) {
        return `${reference.length}:${reference.slice(-KEY_CHARACTERS)}`;
    }

    function remove(button) {
        const unit = button.closest(UNIT);
        const index = shownButtons(unit).indexOf(button);
        if (index < 0) return;
        // Its place stays until the strip is drawn anew: the second click of a double click must not meet the next one.
        button.closest(".ipadapter-tile").classList.add("ipadapter-going");
        focusPlace(unit, index);
        inTurn(unit, () => {
            const items = references(unit);
            const place = items.findIndex(item => removalKey(item) === button.dataset.key);
            if (place >= 0) {
                ipadapterFaces.removed(unit, place, items.length);
                items.splice(place, 1);
            }
            say(unit, "");
            setReferences(unit, items);
            ipadapterDrawings.redraw(unit.id);
        });
    }

    function clear(unit) {
        inTurn(unit, () => {
            say(unit, "");
            ipadapterFaces.cleared(unit);
            setReferences(unit, []);
            ipadapterDrawings.redraw(unit.id);
        });
    }

    function shownButtons(unit) {
        return Array.from(unit.querySelectorAll(".ipadapter-tile:not(.ipadapter-going) .ipadapter-remove"));
    }

    // Where in a strip the keyboard is (the number of a picture, or another button's class), until the user goes
    // elsewhere. A drawing that replaces the strip is no such going.
    function onFocusIn(event) {
        const unit = event.target.closest(".ipadapter-strip")?.closest(UNIT);
        const index = unit ? shownButtons(unit).indexOf(event.target) : -1;
        focused = unit ? {id: unit.id, place: index >= 0 ? index : event.target.className} : null;
    }

    function onPointerDown(event) {
        if (!event.target.closest?.(".ipadapter-strip")) focused = null;
    }

    function restoreFocus(unit) {
        if (focused?.id === unit.id && document.activeElement === document.body) focusPlace(unit, focused.place);
    }

    function focusPlace(unit, place) {
        const buttons = shownButtons(unit);
        const last = buttons.length - 1;
        const wanted = typeof place === "number" ? buttons[Math.min(place, last)] : unit.querySelector("." + place);
        (wanted ?? unit.querySelector(".ipadapter-add"))?.focus({preventScroll: true});
    }

    function onClick(event) {
        const target = event.target;
        if (!(target instanceof Element)) return;
        const unit = target.closest(UNIT);
        if (!unit) return;
        if (target.closest(".ipadapter-add")) {
            chooseFiles(unit);
        } else if (target.closest(".ipadapter-remove")) {
            if (event.detail < 2) remove(target.closest(".ipadapter-remove"));
        } else if (target.closest(".ipadapter-clear")) {
            clear(unit);
        } else if (target.closest(".ipadapter-pose-choose")) {
            choosePose(unit);
        } else if (target.closest(".ipadapter-pose-remove")) {
            removePose(unit);
        }
    }

    function onKeyDown(event) {
        if (event.key !== "Delete" && event.key !== "Backspace") return;
        const button = event.target instanceof Element && event.target.closest(".ipadapter-remove");
        if (button) {
            event.preventDefault();
            remove(button);
        }
    }

    function isPicture(file) {
        return file.type.startsWith("image/");
    }

    // The strip that the keyboard is in, also in the moment in which a drawing has replaced it.
    function keyboardZone() {
        const active = document.activeElement;
        if (active && active !== document.body) return active.closest(DROP_ZONE);
        return focused ? document.getElementById(focused.id)?.querySelector(DROP_ZONE) : null;
    }

    function isTyping(element) {
        return Boolean(element?.matches("textarea, input, [contenteditable=true]"));
    }

    function onPaste(event) {
        // Text goes where the user types, even where it brings pictures of itself (from Word, or a web page).
        if (isTyping(document.activeElement) && event.clipboardData?.types.includes("text/plain")) return;
        const files = Array.from(event.clipboardData?.files ?? []).filter(isPicture);
        const zone = keyboardZone() ?? (hovered?.isConnected && hovered.offsetParent ? hovered : null);
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
            addAddress(unit, firstAddress(event.dataTransfer.getData("text/uri-list")));
        }
    }

    function confirmDeletion(event) {
        const button = event.target instanceof Element && event.target.closest(".ipadapter-delete-store");
        if (!button || window.confirm("Delete every stored reference picture from this computer?")) return;
        event.preventDefault();
        event.stopImmediatePropagation();
    }

    // A mouse over the strip is enough for pasting.
    function onPointerOver(event) {
        if (event.target instanceof Element) hovered = event.target.closest(DROP_ZONE);
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
    document.addEventListener("pointerdown", onPointerDown, {capture: true, passive: true});
    document.addEventListener("focusin", onFocusIn);

    return {references, removalKey, setText, inTurn, restoreFocus};
})();
