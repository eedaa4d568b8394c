// The machine under the worker. The only file that asks which compiler is reading it.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#include <mkc/arch/cuda.cuh>
#else
#include <mkc/arch/host.cuh>
#endif
