"""Pictures of results; they draw what other modules computed and define no science.

A drawing function takes its data first. It returns a matplotlib figure of its own, which notebooks
show and ``savefig`` writes, or draws into the axes that are given as ``ax``; pyplot and its global
state stay out of it.

=======================  =========================================================================
module                   pictures
=======================  =========================================================================
:mod:`~.certification`   ``certification``: |λ| against index with the noise floor;
                         ``lanczos_density``: from Lanczos quadrature, with certified eigenvalues
:mod:`~.levels`          ``spacings``, ``surmise``, ``ratios``, ``higher_orders``,
                         ``long_range``, ``staircase``, ``spectral_density``,
                         ``density_per_decade``, ``p_values``
:mod:`~.lossmodel`       ``densities``, ``ratios`` of sampled Hessians, panel by panel;
                         ``iterate_norms`` of sampled iterates
:mod:`~.capacity`        ``layer_density``, ``alpha_histogram``, ``against`` accuracies
:mod:`~.training`        ``history``, ``side_by_side``: a network against training epochs;
                         ``averaged_losses``, ``averaged_spectra`` of averaged iterates; ``budget``
:mod:`~.generalization`  ``margin_growth``, ``norms``, ``distances``, ``curvature`` of gradient
                         flows; ``approximation_errors`` of deep trees and shallow networks
:mod:`~.puzzles`         ``losses``, ``capacity``, ``product_at_loss``, ``outputs``, ``margins``,
                         ``against_value``, ``width``, ``sample_errors``, ``sample_losses`` of
                         families of networks
:mod:`~.style`           colours, laws, panels, legends and axes of all of them
:mod:`~.files`           ``draw_each``, ``save``: pictures as files
=======================  =========================================================================

What belongs into the figures of a command is in :mod:`hessrmt.runs`, of an experiment in its file.
"""
