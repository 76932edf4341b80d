"""Where clips come from, one module per data set.

A source has `labels(params)`; `clips(params, annotations)`, one Clip for every clip that the data set lists, without
fetching any; and `fetch`, which gets them.
"""

from types import ModuleType

from maavt.sources import ave, cremad, folder, synth, vggsound

SOURCES: dict[str, ModuleType] = {
    "synth": synth,
    "ave": ave,
    "vggsound": vggsound,
    "cremad": cremad,
    "folder": folder,
}
