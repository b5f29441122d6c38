"""What whitening does in a trained network, as numbers: spectra, correlations, zeros, fields.

Files: `spectra` reads a covariance and a root, `layers` gathers both from a running network,
`filters` makes pictures of a root's rows, `receptive_field` asks which pixels a feature depends on.
Nothing here draws, and nothing trains.
"""

from segdeconv.analysis.filters import (
    centre_filters,
    constant_response,
    tap_filters,
    whitening_matrix,
)
from segdeconv.analysis.layers import (
    MAX_COLUMNS,
    MAX_PATCHES,
    LayerStatistics,
    observing,
    unobserved,
)
from segdeconv.analysis.receptive_field import (
    THRESHOLDS,
    in_evaluation,
    last_map,
    log_map,
    mean_map,
    participation,
    radius,
    receptive_field,
    squares,
    variances,
)
from segdeconv.analysis.spectra import (
    Whitened,
    condition,
    correlation,
    effective_share,
    mean_correlation,
    spectrum,
    whiten,
    whitened,
)

__all__ = [
    "MAX_COLUMNS",
    "MAX_PATCHES",
    "THRESHOLDS",
    "LayerStatistics",
    "Whitened",
    "centre_filters",
    "condition",
    "constant_response",
    "correlation",
    "effective_share",
    "in_evaluation",
    "last_map",
    "log_map",
    "mean_correlation",
    "mean_map",
    "observing",
    "participation",
    "radius",
    "receptive_field",
    "spectrum",
    "squares",
    "tap_filters",
    "unobserved",
    "variances",
    "whiten",
    "whitened",
    "whitening_matrix",
]
