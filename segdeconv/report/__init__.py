"""What a run or an evaluation came to, as one HTML file that needs nothing else."""

from segdeconv.report.comparison import render_comparison as render_comparison
from segdeconv.report.examples import Example as Example
from segdeconv.report.examples import choose as choose
from segdeconv.report.examples import make_example as make_example
from segdeconv.report.inspection import render_inspection as render_inspection
from segdeconv.report.observation import ClassificationObserver as ClassificationObserver
from segdeconv.report.observation import Observer as Observer
from segdeconv.report.page import Evaluation as Evaluation
from segdeconv.report.page import render_report as render_report
from segdeconv.report.records import RunRecord as RunRecord
from segdeconv.report.records import read_run as read_run
