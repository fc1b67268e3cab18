"""Mean of the consecutive spacing ratio r̃ = min(r, 1/r) under the reference laws.

Source: Atas, Bogomolny, Giraud, Roux, PRL 110, 084101 (2013), Table I and eqs. (7)-(8).
"""

import math

MEAN_RATIO_GOE = 0.5307
"""Large-matrix GOE mean of r̃, numerical, ± 0.0001 (Atas et al. 2013, Table I)."""

MEAN_RATIO_GOE_SURMISE = 4 - 2 * math.sqrt(3)
"""GOE mean of r̃ by the 3 x 3 surmise, 0.5359 (Atas et al. 2013, Table I)."""

MEAN_RATIO_POISSON = 2 * math.log(2) - 1
"""Mean of r̃ for independent levels, 0.3863 (Atas et al. 2013, Table I)."""
