// The host's own sliders in a tab (CFG scale, steps, width, height): what they hold, setting one, and being told of
// changes by an event. ipadapter_advice.js and ipadapter_keypoints.js work with it.

const ipadapterHost = (() => {
    const FIELDS = ["cfg_scale", "steps", "width", "height"];
    const LOOK_EVERY_MS = 400;
    const CHANGED = "ipadapter-host-changed";
    let seen = "";

    function tabOf(element) {
        return element.closest("[id^=img2img_ipadapter]") ? "img2img" : "txt2img";
    }

    function input(tab, field) {
        return document.querySelector(`#${tab}_${field} input[type=number]`);
    }

    // What a slider holds; null where the tab has none, or does not show it (a size while img2img scales its picture).
    function number(tab, field) {
        const found = input(tab, field);
        if (!found || !found.offsetParent || found.value === "") return null;
        return Number(found.value);
    }

    // The size of the picture to be made as far as the tab shows it: 1024x768, or nothing.
    function size(element) {
        const sides = element ? ["width", "height"].map(field => number(tabOf(element), field)) : [null];
        return sides.includes(null) ? "" : sides.join("x");
    }

    // As if it was typed and the field left: "input" carries the value to gradio, "blur" is its slider's release.
    function set(tab, field, value) {
        const found = input(tab, field);
        if (!found) return;
        found.value = String(value);
        found.dispatchEvent(new Event("input", {bubbles: true}));
        found.dispatchEvent(new Event("blur"));
        look();
    }

    function focus(tab, field) {
        input(tab, field)?.focus({preventScroll: true});
    }

    // A paste or the button that swaps the sides changes a slider without any event of the page, so it is looked at.
    function look() {
        if (!document.querySelector(".ipadapter-advice, .ipadapter-identity")) return;
        const now = ["txt2img", "img2img"].map(tab => FIELDS.map(field => number(tab, field))).join();
        if (now === seen) return;
        seen = now;
        document.dispatchEvent(new Event(CHANGED));
    }

    document.addEventListener("input", () => setTimeout(look, 0));
    setInterval(look, LOOK_EVERY_MS);

    return {tabOf, number, size, set, focus};
})();
