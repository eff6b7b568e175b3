"""What the page folds away below its charts: what each is, how it is computed, good and bad cases, and pitfalls."""

STRIP = (
    "What it is: for each layer, what a client would lose, or gain, in its own loss if only that layer of its "
    "uploaded model were replaced by the average over the clients. How it is computed: loss(client's model with "
    "the layer's average) - loss(client's model), on data that neither was trained on; the reference is the "
    "client's own model (Adilova et al. 2024, arXiv 2307.06966, with this reference in place of the mean of all "
    "models, which mixes up how good a client is with what a layer does). Good: pale layers, whose intervals are "
    "narrow around 0: averaging them is free. Bad: a red layer whose interval is far above 0: clients pay for "
    "averaging it, and might keep it personal. Blue: averaging helps. Pitfalls: layers are changed one at a time,"
    " and costs do not add up (see all together); each interval holds for one layer by itself, so among many "
    "layers one in twenty may miss 0 by chance; intervals over the clients of one seed say nothing about other "
    "seeds; on the server's data, averaging nearly always helps a client that has seen few classes."
)
CLIENTS = (
    "What it is: who gains from federation, and whether that depends on how much data a client has (training "
    "examples) or on how varied they are (label entropy: -sum p ln p over its classes; 0 for one class, ln of the"
    " number of classes for equal shares). How it is computed: the personalised model on the client's own test "
    "data{gain}. Good: most points above the dashed line, small clients included. Bad: a cloud that falls below 0"
    " for large or one-sided clients, who would do better by themselves. Pitfalls: a client with 5 test examples "
    "changes in steps of 20 points, so look at the number of test examples in the hover before reading a single "
    "point; clients of one run share their average and are not independent."
)
TRAFFIC = (
    "What it is: which layers pay for the communication. How it is computed: sizes of the tensors in the "
    "messages, summed over rounds and clients; models that only the analysis needs are not counted. Good: the "
    "wide bars are layers whose averaging helps. Bad: a layer that costs clients accuracy in the layer strip and "
    "takes most of the bytes. Pitfalls: a compressed update counts with its compressed size; a client that takes "
    "part rarely takes more down at once; sets of parameters besides the model are named in brackets."
)
TIME = (
    "What it is: where the time goes on this machine. How it is computed: seconds from the start to the end of "
    "each part of a round. Good: mostly training. Bad: mostly analysis: let it happen less often with "
    "barriers.every. Pitfalls: wall time depends on the machine, on the number of workers and on what else ran; "
    "compare methods by passes or bytes instead. A kill just before a round's time was written loses it."
)
