// Every score feature. A configuration names those that it compiles in.
#pragma once

#include <score/alibi.cuh>
#include <score/bias.cuh>
#include <score/dropout.cuh>
#include <score/mask.cuh>
#include <score/scale.cuh>
#include <score/softcap.cuh>
