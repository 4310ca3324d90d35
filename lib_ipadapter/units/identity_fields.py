"""The fields of a unit that only InstantID has: IdentityNet's and the keypoints'. `fields` lists them with the rest."""

from __future__ import annotations

from .face_choice import AUTO
from .field_spec import FieldSpec

IDENTITY_NET: FieldSpec[str] = FieldSpec(
    name="identity_net",
    label="IdentityNet",
    kind="adapter",
    default="auto",
    help="InstantID's ControlNet file, by name; auto finds it by its content or by a name with 'instant' in it, none "
    "leaves it off, so that the person comes through attention alone.",
)
# The official scale of both halves (InstantID, gradio demo and infer.py).
NET_WEIGHT: FieldSpec[float] = FieldSpec(
    name="net_weight",
    label="IdentityNet weight",
    kind="number",
    default=0.8,
    help="How strongly IdentityNet holds the face and its keypoints; 0 leaves it off.",
    minimum=0.0,
    maximum=2.0,
    step=0.05,
)
NET_START: FieldSpec[float] = FieldSpec(
    name="net_start",
    label="IdentityNet start",
    kind="number",
    default=0.0,
    help="The fraction of each pass's steps at which IdentityNet begins to act.",
    minimum=0.0,
    maximum=1.0,
    step=0.01,
)
NET_END: FieldSpec[float] = FieldSpec(
    name="net_end",
    label="IdentityNet end",
    kind="number",
    default=1.0,
    help="The fraction of each pass's steps at which IdentityNet stops acting.",
    minimum=0.0,
    maximum=1.0,
    step=0.01,
)
NET_ROWS: FieldSpec[str] = FieldSpec(
    name="net_rows",
    label="IdentityNet rows",
    kind="choice",
    default="both",
    help="Whether IdentityNet runs for the prompt and for the negative prompt, as it was made to, or for the prompt "
    "alone, which takes half its time.",
    choices=(("both", "Prompt and negative"), ("cond", "Prompt only (faster)")),
)
NET_ENGINE: FieldSpec[str] = FieldSpec(
    name="net_engine",
    label="Run IdentityNet in",
    kind="choice",
    default="builtin",
    help="Who runs IdentityNet: this extension, or the ControlNet extension as one of its own, which on AUTOMATIC1111 "
    "takes one person and two of its units and has to list both halves of InstantID.",
    choices=(("builtin", "Built-in"), ("controlnet", "ControlNet extension")),
)
KEYPOINTS: FieldSpec[str] = FieldSpec(
    name="keypoints",
    label="Keypoints",
    kind="keypoints",
    default="auto",
    help="Where the face's place and turn come from: auto is the unit's pose photo where it has one and else the "
    "reference, pose is its own pose photo or that of the first InstantID unit that has one, none leaves them to the "
    "prompt (IdentityNet does not run), and five points [[x,y],…] are eyes, nose and mouth corners, left in the "
    "picture first, in pixels of the picture to be made or as fractions of it.",
)
NO_POSE: tuple[str, ...] = ()
POSE: FieldSpec[tuple[str, ...]] = FieldSpec(
    name="pose",
    label="Pose photo",
    kind="images",
    default=NO_POSE,
    help="A picture of anybody whose face stands where, and turned as, the result's is to be.",
    maximum=1,
)
POSE_FACE: FieldSpec[str] = FieldSpec(
    name="pose_face",
    label="Pose photo's face",
    kind="one_face",
    default=AUTO,
    help="Which face of the pose photo counts, in the same words as for the references; auto is the largest, but where "
    "several units have the same photo they take its faces from left to right, leaving out those chosen otherwise.",
)
FIT: FieldSpec[str] = FieldSpec(
    name="fit",
    label="Fit",
    kind="choice",
    default="crop",
    help="How a photo whose shape is another than the result's lays its keypoints: its middle covers the picture, it "
    "is wholly in it, or it is stretched to it.",
    choices=(("crop", "Crop"), ("pad", "Pad"), ("stretch", "Stretch")),
)
SHOW_MAP: FieldSpec[bool] = FieldSpec(
    name="show_map",
    label="Show keypoint map",
    kind="bool",
    default=False,
    help="Put the map of keypoints that IdentityNet was given beside the results, also in the API's answer.",
    axis=False,
)
