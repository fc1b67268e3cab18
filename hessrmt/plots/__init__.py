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
:mod:`~.slq`                    ``spectral_density`` from Lanczos quadrature, with certified levels
:mod:`~.capacity`               ``layer_density``, ``alpha_histogram``, ``against`` accuracies
:mod:`~.puzzle_losses`          ``losses``: test against training losses of a family, with the line
:mod:`~.puzzle_families`        ``capacity``, ``product_at_loss``, ``outputs``, ``margins``
:mod:`~.puzzle_trends`          ``against_value``, ``width``, ``sample_errors``, ``sample_losses``
:mod:`~.averaging`              ``losses``, ``spectra`` of averaged iterates; ``budget``
:mod:`~.flow`                   ``margin_growth``, ``norms``, ``distances``, ``curvature`` of flows
:mod:`~.approximation`          ``approximation_errors``: deep trees against shallow networks
:mod:`~.files`                  ``draw_all``: all of one set of unfolded levels, as files
:mod:`~.reproduction`           ``spacings_figures``: the experiment ``hessian-spacings``
:mod:`~.puzzles`                ``puzzles_figures``: the experiments ``puzzles-*``
==============================  ==================================================================
"""
