"""Samplers for denoisers that know images alone: H and y come in by the sampler's own steps."""

from zero_shot.base import ZeroShot
from zero_shot.daps import DAPS
from zero_shot.ddnm import DDNM, DDNMPlus
from zero_shot.ddrm import DDRM, Unrolled
from zero_shot.dds import DDS
from zero_shot.diffpir import DiffPIR
from zero_shot.dps import DPS
from zero_shot.mcgdiff import MCGdiff
from zero_shot.mgps import MGPS
from zero_shot.pigdm import PiGDM
from zero_shot.pnpdm import PnPDM
from zero_shot.reddiff import REDDiff
