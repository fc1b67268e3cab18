"""Pictures of results; they draw what other modules computed and define no science.

Every function returns a :class:`hessrmt.plots.picture.Picture`, a matplotlib figure that notebooks
show and ``savefig`` writes; pyplot and its global state stay out of it.

==============================  ==================================================================
module                          pictures
==============================  ==================================================================
:mod:`~.certification`          ``certification``: |λ| against index with the noise floor
:mod:`~.spacings`               ``spacing_histogram``
:mod:`~.surmise`                ``surmise``: Wigner's surmise beside the exact law
:mod:`~.ratios`                 ``ratio_histogram``
:mod:`~.density`                ``spectral_density``, ``density_per_decade``
:mod:`~.staircase`              ``staircase``
:mod:`~.longrange`              ``number_variance``, ``rigidity``, ``form_factor``
:mod:`~.lossmodel`              ``densities``, ``ratios`` of sampled Hessians, panel by panel
:mod:`~.history`                ``history``, ``side_by_side``: a network against training epochs
:mod:`~.files`                  ``draw_all``: all of them for one set of unfolded levels, as files
==============================  ==================================================================
"""
