// Moving the points of an InstantID unit's map of keypoints. A point follows the pointer, or the arrow keys; letting go
// writes all five, as fractions of the picture to be made, into the unit's field, and the server draws the map anew
// (ipadapter_drawings.js).

const ipadapterKeypoints = (() => {
    const UNIT = ".ipadapter-unit";
    const MAP = ".ipadapter-map";
    const DOT = ".ipadapter-dot";
    const MOVING = "ipadapter-moving";
    const STEP = 0.005;
    const LARGE_STEP = 0.05;
    const SETTLING_MS = 500;
    const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    // Eyes and mouth corners change places in a mirror, so that of each pair the first stays left in the picture.
    const MIRRORED = [1, 0, 2, 4, 3];
    // What is being moved: {id, place, points, by, timer}; drawings of the unit that come meanwhile do not end it.
    let moving = null;
    let focused = null;

    const within = value => Math.min(Math.max(value, 0), 1);
    const mapOf = unit => unit?.querySelector(MAP);
    const dotsOf = map => Array.from(map.querySelectorAll(DOT));
    const pointsOf = map => dotsOf(map).map(dot => [Number(dot.dataset.x), Number(dot.dataset.y)]);

    function setField(unit, text) {
        ipadapterPage.setText(unit.querySelector(".ipadapter-keypoints textarea, .ipadapter-keypoints input"), text);
    }

    function write(unit, points) {
        setField(unit, JSON.stringify(points.map(point => point.map(value => Number(within(value).toFixed(4))))));
    }

    function percent(value) {
        return (100 * value).toFixed(2);
    }

    // Lay handles and limbs where the points are; the picture below is of where they were, and fades.
    function show(map, points) {
        map.classList.add(MOVING);
        dotsOf(map).forEach((dot, place) => {
            const [x, y] = points[place];
            dot.style.left = percent(x) + "%";
            dot.style.top = percent(y) + "%";
            const [across, down] = [x, y].map(value => Math.round(100 * value));
            dot.setAttribute("aria-label", `${dot.dataset.name}, ${across}% across, ${down}% down`);
        });
        for (const line of map.querySelectorAll("line")) {
            const [from, to] = [points[line.dataset.from], points[line.dataset.to]];
            Object.entries({x1: from[0], y1: from[1], x2: to[0], y2: to[1]})
                .forEach(([name, value]) => line.setAttribute(name, percent(value)));
        }
    }

    function begin(dot, by) {
        const map = dot.closest(MAP), unit = dot.closest(UNIT), place = dotsOf(map).indexOf(dot);
        if (moving?.id === unit.id && moving.by === by && moving.place === place) return;
        finish();
        moving = {id: unit.id, place, points: pointsOf(map), by, moved: false, timer: 0};
    }

    function move(x, y) {
        moving.points[moving.place] = [within(x), within(y)];
        moving.moved = true;
        const map = mapOf(document.getElementById(moving.id));
        if (map) show(map, moving.points);
    }

    function finish() {
        if (!moving) return;
        const {id, points, moved, timer} = moving;
        clearTimeout(timer);
        moving = null;
        const unit = document.getElementById(id);
        if (unit && moved) write(unit, points);
    }

    function onPointerDown(event) {
        const dot = event.target instanceof Element ? event.target.closest(DOT) : null;
        if (!dot) {
            if (!event.target.closest?.(MAP)) focused = null;
            return;
        }
        if (event.button) return;
        event.preventDefault();
        dot.focus({preventScroll: true});
        begin(dot, event.pointerId);
    }

    function onPointerMove(event) {
        if (!moving || moving.by !== event.pointerId) return;
        const frame = mapOf(document.getElementById(moving.id))?.getBoundingClientRect();
        if (!frame?.width) return;
        move((event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height);
    }

    function onPointerUp(event) {
        if (moving?.by === event.pointerId) finish();
    }

    // The browser took the gesture for itself: the points stay where they were.
    function onPointerCancel(event) {
        if (moving?.by !== event.pointerId) return;
        const unit = document.getElementById(moving.id), map = mapOf(unit);
        moving = null;
        if (map) {
            show(map, pointsOf(map));
            map.classList.remove(MOVING);
        }
    }

    function onKeyDown(event) {
        const dot = event.target instanceof Element ? event.target.closest(DOT) : null;
        const arrow = ARROWS[event.key];
        if (!dot || !arrow || event.ctrlKey || event.altKey || event.metaKey) return;
        event.preventDefault();
        begin(dot, "keys");
        const step = event.shiftKey ? LARGE_STEP : STEP, [x, y] = moving.points[moving.place];
        move(x + step * arrow[0], y + step * arrow[1]);
        clearTimeout(moving.timer);
        moving.timer = setTimeout(finish, SETTLING_MS);
    }

    function onClick(event) {
        const button = event.target instanceof Element ? event.target.closest(".ipadapter-map-buttons button") : null;
        const unit = button?.closest(UNIT);
        if (!unit) return;
        finish();
        if (button.matches(".ipadapter-map-mirror")) {
            const points = pointsOf(mapOf(unit));
            write(unit, MIRRORED.map(place => [1 - points[place][0], points[place][1]]));
        } else {
            setField(unit, "auto");
        }
    }

    function controlsOf(unit) {
        return Array.from(unit.querySelectorAll(`${DOT}, .ipadapter-map-buttons button`));
    }

    // Where in an editor the keyboard is, until the user goes elsewhere; a drawing that replaces it is no such going.
    function onFocusIn(event) {
        const control = event.target instanceof Element && event.target.closest(`${DOT}, .ipadapter-map-buttons button`);
        const unit = control ? control.closest(UNIT) : null;
        if (moving?.by === "keys" && !event.target.closest?.(DOT)) finish();
        focused = unit ? {id: unit.id, place: controlsOf(unit).indexOf(control)} : null;
    }

    // Called when a drawing of the unit is there.
    function restore(unit) {
        const map = mapOf(unit);
        if (map && moving?.id === unit.id && moving.moved) show(map, moving.points);
        if (focused?.id !== unit.id || document.activeElement !== document.body) return;
        const controls = controlsOf(unit);
        controls[Math.min(focused.place, controls.length - 1)]?.focus({preventScroll: true});
    }

    // A map is drawn in the shape of the picture to be made, which has changed; where the points did not fit into the
    // shape before, there is no map yet.
    function onHostChange() {
        for (const part of document.querySelectorAll(".ipadapter-identity")) {
            const unit = part.closest(UNIT), size = ipadapterHost.size(unit);
            if (size && size !== part.dataset.size) ipadapterDrawings.redraw(unit.id);
        }
    }

    document.addEventListener("pointerdown", onPointerDown, true);
    document.addEventListener("pointermove", onPointerMove);
    document.addEventListener("pointerup", onPointerUp);
    document.addEventListener("pointercancel", onPointerCancel);
    document.addEventListener("keydown", onKeyDown);
    document.addEventListener("click", onClick);
    document.addEventListener("focusin", onFocusIn);
    document.addEventListener("ipadapter-host-changed", onHostChange);

    return {restore};
})();
