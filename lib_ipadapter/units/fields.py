"""The one list of a unit's fields. It drives the page, the API, the infotext, the XYZ axes, the schema and README.

Those of InstantID are in `identity_fields`. To add a field: add it here and to `unit.Unit`; a test fails until both
agree. The order here is the order of the page's flat arguments. No field may be called `module`: ADetailer switches off
any dict argument that has that key.
"""

from __future__ import annotations

from .field_spec import FieldSpec, Value
from .identity_fields import (
    FIT,
    IDENTITY_NET,
    KEYPOINTS,
    NET_END,
    NET_ENGINE,
    NET_ROWS,
    NET_START,
    NET_WEIGHT,
    POSE,
    POSE_FACE,
    SHOW_MAP,
)
from .regions import AUTO, BY_FACE, PRESETS

ENABLED: FieldSpec[bool] = FieldSpec(
    name="enabled",
    label="Enable unit",
    kind="bool",
    default=True,
    help="Whether this unit takes part; its settings are kept when it does not.",
    axis=False,
)
INTENT: FieldSpec[str] = FieldSpec(
    name="intent",
    label="Intent",
    kind="choice",
    default="image",
    help="What the reference governs: the whole image, only its style (colours, medium, mood), only its composition "
    "(what stands where), style and composition without the subject, who the person is (a photo of a face), or who the "
    "person is and how the face stands (InstantID: the adapter and IdentityNet together).",
    choices=(
        ("image", "Image"),
        ("style", "Style"),
        ("composition", "Composition"),
        ("style_composition", "Style + composition"),
        ("face", "Face"),
        ("instantid", "InstantID"),
    ),
)
NO_IMAGES: tuple[str, ...] = ()
IMAGES: FieldSpec[tuple[str, ...]] = FieldSpec(
    name="images",
    label="References",
    kind="images",
    default=NO_IMAGES,
    help="The reference pictures, each as a data URI, base64 or the 'sha256:…' id of a stored picture.",
    maximum=64,
)
COMBINE: FieldSpec[str] = FieldSpec(
    name="combine",
    label="Combine",
    kind="choice",
    default="auto",
    help="How several references act together: concat lets the image attend to each, mean blends what was seen in them "
    "(of faces, the normalised mean), average blends the adapter's tokens, and auto is mean for photos of a person but "
    "concat for portrait adapters and everything else; sequence lets the projector of InstantID and Portrait unnorm "
    "see several faces at once.",
    choices=(
        ("auto", "Auto"),
        ("concat", "Concatenate"),
        ("mean", "Mean"),
        ("average", "Average of tokens"),
        ("sequence", "Sequence of faces"),
    ),
)
ADAPTER: FieldSpec[str] = FieldSpec(
    name="adapter",
    label="Adapter",
    kind="adapter",
    default="auto",
    help="The adapter file, by name; auto takes the best installed one for the loaded checkpoint and the intent.",
)
# Published advice: 1.0 without a prompt, 0.5 (authors) to 0.8 (cubiq) with one. WebUI users nearly always write a
# prompt, and "prompt ignored" is the complaint that 1.0 causes.
WEIGHT: FieldSpec[float] = FieldSpec(
    name="weight",
    label="Weight",
    kind="number",
    default=0.8,
    help="How strongly the reference acts beside the prompt: 0 is off, 1 is full strength, below 0 pushes away.",
    minimum=-1.0,
    maximum=3.0,
    step=0.05,
)
START: FieldSpec[float] = FieldSpec(
    name="start",
    label="Start",
    kind="number",
    default=0.0,
    help="The fraction of each pass's steps at which the unit begins to act.",
    minimum=0.0,
    maximum=1.0,
    step=0.01,
)
END: FieldSpec[float] = FieldSpec(
    name="end",
    label="End",
    kind="number",
    default=1.0,
    help="The fraction of each pass's steps at which the unit stops acting.",
    minimum=0.0,
    maximum=1.0,
    step=0.01,
)
UNCOND: FieldSpec[str] = FieldSpec(
    name="uncond",
    label="Unconditional",
    kind="choice",
    default="official",
    help="What the negative prompt's side sees instead of the reference: official is what the adapter was trained "
    "with, the others are a black picture, zeros, or noise made from the reference.",
    choices=(("official", "Official"), ("black", "Black picture"), ("zeros", "Zeros"), ("noise", "Noise")),
)
UNCOND_NOISE: FieldSpec[float] = FieldSpec(
    name="uncond_noise",
    label="Noise amount",
    kind="number",
    default=1.0,
    help="How much noise the negative prompt's side sees where unconditional is noise: 0 is the official side and 1 "
    "all of the noise; with InstantID, 0.35 is what ComfyUI_InstantID uses against burnt pictures.",
    minimum=0.0,
    maximum=1.0,
    step=0.01,
)
CROP: FieldSpec[str] = FieldSpec(
    name="crop",
    label="Crop",
    kind="choice",
    default="centre",
    help="How a reference that is not square meets the encoder's square: its centre, padded, stretched, or cut into "
    "tiles that are encoded one by one.",
    choices=(("centre", "Centre"), ("pad", "Pad"), ("stretch", "Stretch"), ("tiles", "Tiles")),
)

CFG_RESCALE: FieldSpec[float] = FieldSpec(
    name="cfg_rescale",
    label="CFG rescale",
    kind="number",
    default=0.0,
    help="How far the guided prediction is brought back to the contrast of the prompt's own while the unit acts, "
    "against burnt pictures at a high CFG scale: 0 is off, 0.7 usual; of several units the largest counts, and it is "
    "for the whole picture.",
    minimum=0.0,
    maximum=1.0,
    step=0.05,
)
# The page's click writes "@x,y"; a list gives each picture its own.
FACE: FieldSpec[str] = FieldSpec(
    name="face",
    label="Which face",
    kind="face",
    default="largest",
    help="Which face of a photo counts: largest, best (the surest detection), a number from left to right, or @x,y, a "
    "point in it as fractions of width and height (a click on the preview writes that); one for all photos, or one for "
    "each, separated by semicolons.",
)
LORA: FieldSpec[float] = FieldSpec(
    name="lora",
    label="FaceID LoRA",
    kind="number",
    default=0.6,
    help="Strength of the LoRA that belongs to a FaceID adapter and is applied with it, without a tag in the prompt; 0 "
    "leaves it off.",
    minimum=0.0,
    maximum=2.0,
    step=0.05,
)
S_SCALE: FieldSpec[float] = FieldSpec(
    name="s_scale",
    label="Face shape (Plus v2)",
    kind="number",
    default=1.0,
    help="How much FaceID Plus v2 takes from CLIP's view of the aligned face (shape, expression) beside the identity; "
    "other adapters have no such scale.",
    minimum=-1.0,
    maximum=5.0,
    step=0.05,
)
SCORE: FieldSpec[bool] = FieldSpec(
    name="score",
    label="Identity score",
    kind="bool",
    default=False,
    help="After generation, find the faces in each result and write the cosine between them and the reference's face "
    "into its infotext; the best of a batch is named under the result.",
    axis=False,
)
# No field inverts a region: a half and a box have neighbours, and a picture is inverted where it is drawn.
REGION: FieldSpec[str] = FieldSpec(
    name="region",
    label="Region",
    kind="region",
    default=AUTO,
    help="Where in the picture the reference acts: auto is everywhere, but around each one's face where several "
    "InstantID units show faces; face is around this InstantID unit's face, hair and chin included; a part by its "
    "name; a box x,y,width,height as fractions from the top left corner (0,0,0.5,1 is the left half); or a drawn "
    "picture, stretched over the whole one, whose white parts act; inpainting the masked area only, it is still a part "
    "of the whole picture, and a FaceID adapter's LoRA has no region.",
    choices=(*BY_FACE.items(), *((name, label) for name, (label, _) in PRESETS.items())),
)
FEATHER: FieldSpec[float] = FieldSpec(
    name="feather",
    label="Feather",
    kind="number",
    default=0.05,
    help="How wide a region's edge is, as a fraction of the picture's shorter side: the effect fades from full to none "
    "across it, half inside and half outside, so that neighbouring regions add up to the whole.",
    minimum=0.0,
    maximum=0.5,
    step=0.01,
)

FIELDS: tuple[FieldSpec[Value], ...] = (
    ENABLED,
    INTENT,
    IMAGES,
    COMBINE,
    ADAPTER,
    WEIGHT,
    START,
    END,
    UNCOND,
    UNCOND_NOISE,
    CROP,
    CFG_RESCALE,
    FACE,
    LORA,
    S_SCALE,
    SCORE,
    REGION,
    FEATHER,
    IDENTITY_NET,
    NET_WEIGHT,
    NET_START,
    NET_END,
    NET_ROWS,
    NET_ENGINE,
    KEYPOINTS,
    POSE,
    POSE_FACE,
    FIT,
    SHOW_MAP,
)
FIELDS_BY_NAME: dict[str, FieldSpec[Value]] = {spec.name: spec for spec in FIELDS}
