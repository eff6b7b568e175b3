"""What the page folds away below its charts: what each is, how it is computed, good and bad cases, and pitfalls."""

CURVES = (
    "What it is: how the clients' own models and the server's model get better over the rounds, or for the bytes, "
    "passes or seconds that they cost. How it is computed: means over the clients, each counting once; the band spans "
    "10 % to 90 % of the clients' own models. Good: curves that have stopped rising, and a narrow band. Bad: a curve "
    "that still rises in the last round, which says nothing about where it ends; or a band that widens, so that some "
    "clients pay for the others. Pitfalls: under label skew, a client's own test data have few classes, which is "
    "easier than all classes, so compare models on the same data only."
)
STRIP = (
    "What it is: for each layer, what a client would lose, or gain, in its own loss if only that layer of its "
    "uploaded model were replaced by the average over the clients. How it is computed: loss(client's model with "
    "the layer's average) - loss(client's model), both on the data named above: test data, which no client has "
    "trained on, or else all clients' training data; the reference is the client's own model "
    "(Adilova et al. 2024, arXiv 2307.06966, with this reference in place of the mean of all models, which mixes up "
    "how good a client is with what a layer does). Good: pale layers, whose intervals are narrow "
    "around 0: averaging them is free. Bad: a red layer whose interval is far above 0: clients pay for averaging it, "
    "and might keep it personal. Blue: averaging helps. Pitfalls: layers are changed one at a time, and "
    "costs do not add up (see all together); each interval holds for one layer by itself, so among many layers "
    "one in twenty may miss 0 by chance; intervals over the clients of one seed say nothing about other "
    "seeds; on the server's data, averaging nearly always helps a client that has seen few classes."
)
CLIENTS = (
    "What it is: who gains from federation, and whether that depends on how much data a client has (training "
    "examples) or on how varied they are (label entropy: -sum p ln p over its classes; 0 for one class, ln of the"
    " number of classes for equal shares). How it is computed: the personalised model on the client's own test "
    "data{gain}. Good: most points above the dashed line, small clients included. Bad: a cloud that falls below 0"
    " for large clients or clients with skewed labels, which would do better with local training. Pitfalls: "
    "a client with 5 test examples changes in steps of 20 points, so look at the number of test examples in the hover "
    "before reading a single point; clients of one run share their average and are not independent."
)
PARTITION = (
    "What it is: which client holds how many examples of which class. How it is computed: from the split itself, "
    "training, validation and test examples together; the area of a bubble is in proportion to its count. Good: the "
    "split that you meant; with Dirichlet alpha 0.1 most clients hold two to four of ten classes, and with alpha 100 "
    "all columns look alike. Bad: clients with a handful of examples, one client with half of all data, or a class "
    "that a single client holds. Pitfalls: alpha alone does not say how skewed a split is, so report the total "
    "variation next to it; every seed draws another split."
)
TRAFFIC = (
    "What it is: which layers pay for the communication. How it is computed: sizes of the tensors in the "
    "messages, summed over rounds and clients; models that only the analysis needs are not counted. Good: the "
    "wide bars are layers whose averaging helps. Bad: a layer whose averaging costs clients in the layer strip and "
    "takes most of the bytes. Pitfalls: a compressed update counts with its compressed size; a client that takes "
    "part rarely takes more down at once; sets of parameters besides the model are named in brackets."
)
TIME = (
    "What it is: where the time goes on this machine. How it is computed: seconds from the start to the end of "
    "each part of a round. Good: mostly training. Bad: mostly analysis: raise barriers.every to run it less "
    "often. Pitfalls: wall time depends on the machine, on the number of workers and on what else ran; "
    "compare methods by passes or bytes instead. A kill just before a round's time was written loses it."
)
# Of all other sections, by the beginning of their names.
OF = {
    "barriers": (
        "What it is: what happens to a client's uploaded model if one layer, or all (full), is replaced by the "
        "average over the clients. How it is computed: the loss of the mixed model minus a reference, which the "
        "title of each map names: the mean of all clients' losses (the paper's definition, Adilova et al. 2024, "
        "arXiv 2307.06966), or the client's own loss; mean over the clients. Good: pale rows near 0, the layer is "
        "connected. Bad: a red row, averaging it costs loss in each round. Pitfalls: with the mean of all models as"
        " reference a bad client looks like a barrier; on the server's data blue is normal for clients that have "
        "seen few classes; the rows do not add up to full."
    ),
    "pairs": (
        "What it is: the same for the line between two clients' layers instead of the average of all. How it is "
        "computed: the loss halfway minus a reference: the mean of both models' losses, or the loss interpolated "
        "between the path's own ends, where only the layer differs. Good: about 0 or below. Bad: far above 0 for a "
        "single layer, which then separates the clients. Pitfalls: the two references differ where the clients' own"
        " losses do; few pairs say little about all of them."
    ),
    "cumulative": (
        "What it is: averaging a growing set of layers, from the input, from the output, or in random order. How it"
        " is computed: the loss of the mixed model minus a reference, which the text above names. Good: pale up to the "
        "last column. Bad: a barrier that appears when certain layers enter. Pitfalls: a barrier need not grow with "
        "the set; random orders are one draw each."
    ),
    "windows": (
        "What it is: averaging equally many consecutive layers, so that sets of different position can be compared."
        " How it is computed: the loss of the mixed model minus a reference, which the text above names. Good: pale "
        "everywhere. Bad: red where the window covers the layers that clients disagree on. Pitfalls: windows have "
        "equal numbers of layers, not of parameters."
    ),
    "paths": (
        "What it is: the loss, or error, on the way from a model (t = 0) to the model with the other's layer (t = "
        "1). How it is computed: the layer is (1 - t) times its own plus t times the other's, all else stays. Good:"
        " a line that sags or is straight. Bad: a hill between the ends, a barrier. Pitfalls: the two ends may "
        "differ, so compare with the straight line between them; panels other than full share one scale."
    ),
    "robustness": (
        "What it is: whether the direction of the average is worse than a random one. How it is computed: one layer"
        " moved towards the average by a share t of the distance, and equally far in random directions; the loss "
        "minus the model's own. Good: both curves low. Bad: the averaging direction far above the random ones, so "
        "that its direction does harm and not the distance. Pitfalls: bands are standard deviations over few draws,"
        " no confidence intervals."
    ),
    "criticality": (
        "What it is: how much of what a layer learned in this round matters. How it is computed: the layer is reset"
        " to its state at the start of the round; the loss minus the model's own loss. Good or bad depends on the "
        "question: red layers carry what was learned, pale ones could be skipped or frozen. Pitfalls: layers are "
        "reset one at a time; two that stand in for each other both look uncritical."
    ),
    "blocks": (
        "What it is: the layer-wise barriers of the last round at the places of the layers in the model: a row for "
        "each block, a column for each module, and a map for each factor of adapters. How it is computed: as in the "
        "heat map of barriers. Good: pale rows or columns; share these. Bad: a red column, a kind of module in "
        "which clients disagree at all depths; or red rows towards the output: share the first blocks only. Pitfalls: "
        "layers are changed one at a time; grey cells are layers that do not train, or were not measured."
    ),
    "interaction": (
        "What it is: whether mixing two layers together costs more than the two alone. How it is computed: cost of "
        "both minus the costs of each. About 0: the layers can be judged one at a time. Red: they must be averaged "
        "together or not at all. Pitfalls: with many layers some pairs stand out by chance."
    ),
    "unexplained": (
        "What it is: how much of the barrier of all layers the single layers do not explain. How it is computed: "
        "the full barrier minus the sum of the single ones. About 0: costs add up. Far from 0: layers interact, and"
        " single barriers mislead. Pitfalls: the band is 1.96 standard errors for each round by itself."
    ),
    "similarity": (
        "What it is: how often two clients' models predict the same. How it is computed: share of examples with the"
        " same most likely class, and share of probabilities that are equal to 1e-4; mean over the pairs. High: the"
        " clients have learned the same function. Low: their average mixes different functions. Pitfalls: two "
        "models that are both right agree, whatever their weights."
    ),
    "distances": (
        "What it is: how far the clients' layers are from the average, or from each other. How it is computed: L2 "
        "distance over the norm of the client's own layer. Small: averaging changes the layer little. Large: "
        "clients drift apart in this layer. Pitfalls: distance is not harm (see the barriers); the norm of a layer "
        "with a scale-free follower means little."
    ),
    "variances": (
        "What it is: how much of the variance of the clients' weights is left in the global model. How it is computed: "
        "variance of each tensor's entries about their mean, over the clients' mean, pooled over a layer's tensors; "
        "above 1 it is drawn as 1. Good: near 1. Bad: towards 1 over the number of clients, as for independent models; "
        "their average has activations that fade from layer to layer. Pitfalls: a server optimiser, a repair or a "
        "factor changes it too; layers that clients keep, normalisations and tensors that begin as "
        "constants are left out."
    ),
    "cosines": (
        "What it is: the angle between clients' layers and the average, of the weights and of their changes since "
        "the start of the round. 1: the same direction; 0: unrelated; below 0: opposed changes. Good: changes with "
        "a clearly positive cosine, clients pull the same way. Bad: about 0, averaging mostly cancels. Pitfalls: in"
        " many dimensions even related changes have small cosines; cosines of weights are near 1 because of the "
        "common start."
    ),
    "connectivity": (
        "What it is: whether the features of the mixed model are the mix of the models' features (Zhou et al. 2023,"
        " arXiv 2307.08286). How it is computed: 1 - cosine between the two, by layer, and its ratio to that of the"
        " two models. Good: a ratio far below 1. Bad: near 1. Pitfalls: 1 - cosine alone is small in the first "
        "layers of any two models, so read the ratio."
    ),
    "exponential": (
        "What it is: whether two wide networks use different hidden units, so that their mix needs no matching (Ito et "
        "al. 2026). How it is computed: between pairs of models, as an average holds a part of each; by layer, the "
        "cosine between the mixed model's features and the mix weighted by the powers of 1 - t and t, and the other's "
        "weights times the inputs over the own weights'. Good: a cosine near 1, far above both controls, and a ratio "
        "near 0. Bad: a cosine at the controls, however high, which shows no structure; a ratio near 1. Pitfalls: "
        "biases are not accounted for, and from where branches of different depth are added, or a softmax is taken, "
        "there is no power to weight by."
    ),
    "calibrated": (
        "What it is: the barrier that is left once the length of the logits does not count. How it is computed: each "
        "model's loss at the inverse temperature with the lowest loss on the same examples, minus the mean of the "
        "ends, with the mixed model alone calibrated, or all. Good: a calibrated barrier near 0. Bad: one as high as "
        "without calibration, so that predictions themselves are wrong. Pitfalls: temperatures are fitted on the "
        "examples that they are measured on; overconfident ends gain from calibration too, so read the last line."
    ),
    "stitching": (
        "What it is: whether later layers of one model can use the features of another. How it is computed: loss "
        "and error of a model with one client's layers up to here and another's after it, without any training. "
        "Good: no more than the two models themselves. Bad: a jump at one layer. Pitfalls: the last point is the "
        "first model itself."
    ),
    "cka": (
        "What it is: similarity of two models' features up to rotation and scale. How it is computed: linear CKA, 1"
        " is equal and 0 unrelated, mean over the pairs. High: clients represent the examples alike. Low, towards "
        "the output: they have specialised. Pitfalls: early layers are similar for any models of similar data; it "
        "ignores the order of units, which averaging does not."
    ),
    "stable": (
        "What it is: about how many directions a layer's weights use. How it is computed: sum of the squared "
        "singular values over the largest squared. Compare the average with the clients: a much lower rank means "
        "that they disagree about all but a few directions. Pitfalls: it says nothing about which directions."
    ),
    "spectra": (
        "What it is: the singular values of each layer over its largest. A steep line: few directions; a flat one: "
        "many. Compare the average with the clients: an earlier fall means that averaging cancels what they do not "
        "share. Pitfalls: both axes are logarithmic; values below 1e-4 of the largest are left out."
    ),
    "prediction": (
        "What it is: which layers will show a barrier, known without a mixed model. How it is computed: a polynomial "
        "of degree five has the slopes and curvatures of the loss at both ends of the path; its value halfway minus "
        "the mean of the ends is the prediction. Good: the same order of layers as measured. Bad: a red measured layer "
        "that is pale in the prediction, whose barrier the ends do not see. Pitfalls: kinks of ReLU have no curvature, "
        "so that predictions of ReLU networks may be off in either direction; for models far apart they are too small; "
        "compare loss_predicted_slopes, which uses no curvature. Running statistics are not predicted."
    ),
    "matching": (
        "What it is: the share of units that were put into another place before models were compared. Near 0: "
        "clients from one start have kept their units. Near 100 %: units of models from different starts. Pitfalls:"
        " equal units can be exchanged for nothing, so a few per cent mean little."
    ),
    "schedule": (
        "What it is: which layers travelled in which round. How it is computed: share of the round's clients that "
        "sent the layer. Dark: all sent it. Pitfalls: a gate that measures needs all layers in that round, whether "
        "they are averaged or not."
    ),
    "gate": (
        "What it is: the numbers by which the strategy decided what to average. How it is computed: increase of a "
        "client's validation loss with the layer's average, weighted by training examples. Above the threshold the "
        "layer stays personal until the next measurement. Pitfalls: it is measured on validation data, and the "
        "layer strip on test data."
    ),
    "products": (
        "What it is: what is lost when factors of adapters are averaged instead of their products. How it is computed: "
        "||sum p B A - B' A'|| / ||sum p B A|| for the clients' factors and the new ones. Near 0: clients have the "
        "same A or B, or alike ones. Near 100 %: their updates cancel out. Pitfalls: a layer whose products are small "
        "may have a large error that hardly matters."
    ),
    "evaluation": (
        "What it is: each client before and after training on its own data. How it is computed: accuracy on the "
        "client's own test data of the model as received, after local training and after fine-tuning. Good: short "
        "lines high up. Bad: a long line upwards, so that the received model suits the client badly; downwards: "
        "training overfits. Pitfalls: clients with few test examples move in large steps."
    ),
}
PEAKS = (
    "What it is: for each layer or group of layers, the most that a model loses on the way from its own layers to "
    "another model's, or to the average. How it is computed: the loss of mixed models at several t minus, for a "
    "pair, the straight line between the losses of the two models (the chord, 0 at both ends of a path of all layers), "
    "or, against the average, the mean of all models' losses; then the largest over t. Good: points near 0 with narrow "
    "bands: the models are connected in this layer (Adilova et al. 2024, arXiv 2307.06966). Bad: a point whose band is "
    "above 0. Pitfalls: with few values of t the top of a path may lie between two of them, so give --ts more values; "
    "a swapped layer alone may cost or help at t = 1, where the chord of a single layer is not 0; bands hold for all "
    "rows of a chart together, for the population that the examples were drawn from, and not for other trainings."
)
