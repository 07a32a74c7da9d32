"""Qualcomm's processors by name with the numbers its libraries know them by; the one list of these there is."""

from __future__ import annotations

CHIPS = {
    "sm8650": 57,  # Snapdragon 8 Gen 3, which comes first because it is the default
    "sm8450": 36,  # 8 Gen 1
    "sm8475": 42,  # 8+ Gen 1
    "sm8550": 43,  # 8 Gen 2
    "sm8750": 69,  # 8 Elite
    "sm8845": 97,  # 8 Gen 5
    "sm8850": 87,  # 8 Elite Gen 5
    "sc8380xp": 60,  # X Elite, X Plus
    "xelite": 60,  # by the name laptops are sold under
    "qcs9100": 77,
    "sa8255": 52,
    "sa8797": 72,
    "sar2230p": 95,
    "ssg2115p": 46,
    "ssg2125p": 58,
    "sw6100": 96,
    "sxr1230p": 45,
    "sxr2230p": 53,
    "sxr2330p": 75,
}
"""Those whose Hexagon computes in float16; older ones, and the SM8350 with them, do not."""
