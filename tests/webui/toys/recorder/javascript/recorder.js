onUiLoaded(() => { document.body.dataset.toyLoaded = Object.keys(opts).length ? 'with opts' : 'without opts'; });
onUiUpdate(() => { document.body.dataset.toyUpdated = 'yes'; });
