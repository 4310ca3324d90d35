// The functions that the host's own script.js gives to extensions.
function gradioApp() {
    const elems = document.getElementsByTagName('gradio-app');
    const elem = elems.length === 0 ? document : elems[0];
    if (elem !== document) elem.getElementById = id => document.getElementById(id);
    return elem.shadowRoot ? elem.shadowRoot : elem;
}
function get_uiCurrentTab() {
    return gradioApp().querySelector('#tabs > .tab-nav > button.selected');
}
function get_uiCurrentTabContent() {
    return gradioApp().querySelector('#tabs > .tabitem[id^=tab_]:not([style*="display: none"])');
}

var opts = window.opts || {};
var localization = window.localization || {};
const standinQueues = {update: [], afterUpdate: [], loaded: [], tabChange: [], optionsChanged: [], optionsAvailable: []};
function onUiUpdate(callback) { standinQueues.update.push(callback); }
function onAfterUiUpdate(callback) { standinQueues.afterUpdate.push(callback); }
function onUiLoaded(callback) { standinQueues.loaded.push(callback); }
function onUiTabChange(callback) { standinQueues.tabChange.push(callback); }
function onOptionsChanged(callback) { standinQueues.optionsChanged.push(callback); }
function onOptionsAvailable(callback) { callback(); }
function updateInput(target) {
    const event = new Event('input', {bubbles: true});
    Object.defineProperty(event, 'target', {value: target});
    target.dispatchEvent(event);
}
function recalculate_prompts_txt2img(...args) { return args; }
function recalculate_prompts_img2img(...args) { return args; }

function standinRun(name, argument) {
    for (const callback of standinQueues[name]) {
        try {
            callback(argument);
        } catch (error) {
            console.error('error running callback', callback, error);
        }
    }
}

// The accordion that is an input: a visible check box in its label, tied to the hidden one.
function inputAccordionChecked(id, checked) {
    const accordion = gradioApp().getElementById(id);
    accordion.visibleCheckbox.checked = checked;
    accordion.onVisibleCheckboxChange();
}
function standinSetupAccordion(accordion) {
    const label = accordion.querySelector('.label-wrap');
    const hidden = gradioApp().querySelector('#' + accordion.id + '-checkbox input');
    const extra = gradioApp().querySelector('#' + accordion.id + '-extra');
    const isOpen = () => label.classList.contains('open');
    let linked = true;
    const box = document.createElement('input');
    box.type = 'checkbox';
    box.id = accordion.id + '-visible-checkbox';
    box.className = 'input-accordion-checkbox';
    box.checked = isOpen();
    accordion.visibleCheckbox = box;
    accordion.onChecked = checked => { if (isOpen() !== checked) label.click(); };
    accordion.onVisibleCheckboxChange = () => {
        if (linked && isOpen() !== box.checked) label.click();
        if (hidden) {
            hidden.checked = box.checked;
            hidden.dispatchEvent(new Event('change', {bubbles: true}));
            updateInput(hidden);
        }
    };
    new MutationObserver(() => {
        accordion.classList.toggle('input-accordion-open', isOpen());
        if (linked) {
            box.checked = isOpen();
            accordion.onVisibleCheckboxChange();
        }
    }).observe(label, {attributes: true, attributeFilter: ['class']});
    if (extra) label.insertBefore(extra, label.lastElementChild);
    const span = label.querySelector('span');
    span.insertBefore(box, span.firstChild);
    box.addEventListener('click', event => { linked = false; event.stopPropagation(); });
    box.addEventListener('input', accordion.onVisibleCheckboxChange);
}
onUiLoaded(() => gradioApp().querySelectorAll('.input-accordion').forEach(standinSetupAccordion));

document.addEventListener('DOMContentLoaded', () => {
    let loaded = false, timer = null, tab = null;
    new MutationObserver(mutations => {
        if (!loaded && gradioApp().querySelector('#txt2img_prompt')) {
            loaded = true;
            standinRun('loaded');
        }
        standinRun('update', mutations);
        clearTimeout(timer);
        timer = setTimeout(() => standinRun('afterUpdate'), 200);
        const now = get_uiCurrentTab();
        if (now && now !== tab) {
            tab = now;
            standinRun('tabChange');
        }
    }).observe(gradioApp(), {childList: true, subtree: true});
});
