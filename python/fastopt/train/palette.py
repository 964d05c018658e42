"""The colours of all pictures; colour-blind readers can distinguish them (Okabe and Ito, 2008)."""

from __future__ import annotations

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PINK, YELLOW, SKY, BLACK = "#CC79A7", "#E69F00", "#56B4E9", "#000000"
CYCLE = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK)  # of successive lines
