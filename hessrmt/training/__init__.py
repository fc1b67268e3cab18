"""Training: makes the parameters at which spectra are studied.

==============================  ==================================================================
module                          contents
==============================  ==================================================================
:mod:`~.protocol`               ``train``, by the published protocol; ``evaluate``; ``initialize``:
                                one standard deviation in all layers; ``permuted``, ``drawn``:
                                wrong labels; ``crop_and_flip``
:mod:`~.averaging`              ``IterateAverage``: Polyak's and tail averages; BatchNorm anew
==============================  ==================================================================
"""
