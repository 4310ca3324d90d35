// Which face of each reference counts. A click on a face in the preview, or beside one, writes a point of that picture
// into the unit's field (units/face_choice.py has its forms); the choices stay with their pictures when others come and
// go. A point rather than a number from the left: it means the same face where a detector finds one face more.

const ipadapterFaces = (() => {
    const UNIT = ".ipadapter-unit";
    const PICTURE = ".ipadapter-face-picture";
    const BOX = ".ipadapter-face-box";
    const DEFAULT = "largest";
    let focused = null;

    function field(unit) {
        return unit.querySelector(".ipadapter-face textarea, .ipadapter-face input");
    }

    function parts(unit) {
        return field(unit).value.split(";").map(part => part.trim() || DEFAULT);
    }

    // As `choice_for`: one choice is for all pictures, a list that is too short ends in the default.
    function choices(unit, count) {
        const given = parts(unit);
        return Array.from({length: count}, (_, place) => (given.length === 1 ? given[0] : given[place]) ?? DEFAULT);
    }

    function isForAll(list) {
        return list.length === 1 && !list[0].startsWith("@");
    }

    function write(unit, list) {
        const same = list.every(choice => choice === list[0]) && isForAll(list.slice(0, 1));
        ipadapterPage.setText(field(unit), same || !list.length ? list[0] ?? DEFAULT : list.join("; "));
    }

    // The pictures that were there keep their choices, and those that came have the default.
    function added(unit, before, after) {
        if (after <= before || !before || isForAll(parts(unit))) return;
        write(unit, [...choices(unit, before), ...Array(after - before).fill(DEFAULT)]);
    }

    function removed(unit, place, before) {
        if (isForAll(parts(unit))) return;
        write(unit, choices(unit, before).filter((_, other) => other !== place));
    }

    function cleared(unit) {
        if (!isForAll(parts(unit))) write(unit, []);
    }

    function choose(unit, key, point) {
        ipadapterPage.inTurn(unit, () => {
            const items = ipadapterPage.references(unit);
            const place = items.findIndex(item => ipadapterPage.removalKey(item) === key);
            if (place < 0) return;
            const list = choices(unit, items.length);
            list[place] = point;
            write(unit, list);
        });
    }

    function pointIn(picture, event) {
        const frame = picture.getBoundingClientRect();
        const along = (at, start, length) => Number(Math.min(Math.max((at - start) / length, 0), 1).toFixed(4));
        return `@${along(event.clientX, frame.left, frame.width)},${along(event.clientY, frame.top, frame.height)}`;
    }

    function onClick(event) {
        const target = event.target instanceof Element ? event.target : null;
        const picture = target?.closest(PICTURE);
        const unit = picture?.closest(UNIT);
        if (!unit) return;
        const box = target.closest(BOX);
        choose(unit, picture.dataset.key, box ? box.dataset.point : pointIn(picture, event));
    }

    // Where in a preview the keyboard is, until the user goes elsewhere; a drawing that replaces it is no such going.
    function onFocusIn(event) {
        const picture = event.target instanceof Element && event.target.closest(PICTURE);
        const place = picture ? Array.from(picture.querySelectorAll(BOX)).indexOf(event.target) : -1;
        focused = place < 0 ? null : {id: picture.closest(UNIT).id, key: picture.dataset.key, place};
    }

    function onPointerDown(event) {
        if (!event.target.closest?.(PICTURE)) focused = null;
    }

    function restoreFocus(unit) {
        if (focused?.id !== unit.id || document.activeElement !== document.body) return;
        const pictures = Array.from(unit.querySelectorAll(PICTURE));
        const picture = pictures.find(one => one.dataset.key === focused.key);
        picture?.querySelectorAll(BOX)[focused.place]?.focus({preventScroll: true});
    }

    document.addEventListener("click", onClick);
    document.addEventListener("focusin", onFocusIn);
    document.addEventListener("pointerdown", onPointerDown, {capture: true, passive: true});

    return {added, removed, cleared, restoreFocus};
})();
