"""Audits: attacks x threats x routes over data, judged on the guard, into a report."""

from ..attack_specs import read_attack as read_attack
from .detection import Detection as Detection
from .flags import FLAGS as FLAGS
from .report import AuditReport as AuditReport
from .report import Flag as Flag
from .report import Row as Row
from .report import WorstCase as WorstCase
from .report import check_gate as check_gate
from .report import check_writable as check_writable
from .runner import audit as audit
from .statistics import Area as Area
from .statistics import Rate as Rate
from .statistics import wilson as wilson
from .table import print_doubts as print_doubts
from .table import print_report as print_report
