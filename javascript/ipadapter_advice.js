// The chips under an InstantID unit's adapter: each is shown where the host's field holds something else than it says,
// and sets that field when it is clicked. What they say and when comes from the server (session/advice.py).

const ipadapterAdvice = (() => {
    const GROUP = ".ipadapter-advice";
    const CHIP = ".ipadapter-advice > button.ipadapter-chip";

    const rule = (element, kind) => (element.dataset[kind] ? JSON.parse(element.dataset[kind]) : null);

    // LCM, Turbo and Lightning models want few steps and hardly any CFG: these are no mistakes there.
    function isFast(group, tab) {
        const limits = Object.entries(rule(group, "fast") ?? {});
        const values = limits.map(([field]) => ipadapterHost.number(tab, field));
        return limits.length > 0 && limits.every(([, most], place) => values[place] !== null && values[place] <= most);
    }

    // What a click would set, as pairs of field and value; nothing where the chip does not apply.
    function changes(chip, tab) {
        const range = rule(chip, "range");
        if (range) {
            const value = ipadapterHost.number(tab, range.field);
            const fits = value === null || (value >= range.low && (range.high === null || value <= range.high));
            return fits || isFast(chip.closest(GROUP), tab) ? [] : [[range.field, range.value]];
        }
        const size = rule(chip, "size");
        const [width, height] = ["width", "height"].map(field => ipadapterHost.number(tab, field));
        if (width === null || height === null) return [];
        const trained = size.sizes.some(([across, down]) => across === width && down === height);
        return [["width", width], ["height", height]]
            .filter(([, side]) => trained || side === size.side)
            .map(([field, side]) => [field, side - size.less]);
    }

    function show(chip, tab) {
        const wanted = changes(chip, tab);
        chip.hidden = !wanted.length;
        if (!wanted.length || !chip.dataset.size) return;
        const sides = Object.fromEntries(wanted);
        const [width, height] = ["width", "height"].map(field => sides[field] ?? ipadapterHost.number(tab, field));
        const label = `${width} × ${height}`;
        if (chip.textContent === label) return;
        chip.textContent = label;
        const why = rule(chip, "size").why;
        chip.title = `Set the size to ${label}. ${why}`;
        chip.setAttribute("aria-label", chip.title);
    }

    function refresh() {
        for (const group of document.querySelectorAll(GROUP)) {
            const tab = ipadapterHost.tabOf(group);
            group.querySelectorAll("button.ipadapter-chip").forEach(chip => show(chip, tab));
            group.hidden = !group.querySelector(".ipadapter-chip:not([hidden])");
        }
    }

    function onClick(event) {
        const chip = event.target instanceof Element ? event.target.closest(CHIP) : null;
        if (!chip) return;
        const tab = ipadapterHost.tabOf(chip), group = chip.closest(GROUP), wanted = changes(chip, tab);
        for (const [field, value] of wanted) ipadapterHost.set(tab, field, value);
        refresh();
        // The chip has gone: the keyboard goes on at the next one, or where the value went.
        if (event.detail) return;
        const next = group.querySelector("button.ipadapter-chip:not([hidden])");
        if (next) next.focus();
        else if (wanted.length) ipadapterHost.focus(tab, wanted[0][0]);
    }

    document.addEventListener("click", onClick);
    document.addEventListener("ipadapter-host-changed", refresh);

    return {refresh};
})();
