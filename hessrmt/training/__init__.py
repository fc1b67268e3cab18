"""Training: makes the points of expansion whose spectra are studied.

==============================  ==================================================================
module                          contents
==============================  ==================================================================
:mod:`~.protocol`               ``train``, by the protocol of [B]; ``evaluate``
:mod:`~.averaging`              ``IterateAverage``: Polyak's and tail averages; BatchNorm anew
:mod:`~.initialization`         ``initialize``: one standard deviation in all layers ([G])
:mod:`~.labels`                 ``permuted``, ``drawn``: wrong labels ([G])
:mod:`~.augment`                ``crop_and_flip``
==============================  ==================================================================
"""
