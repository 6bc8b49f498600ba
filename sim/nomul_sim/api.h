// What a library exports to Python.

#pragma once

#if defined(_WIN32)
#define NOMUL_API extern "C" __declspec(dllexport)
#else
#define NOMUL_API extern "C" __attribute__((visibility("default")))
#endif
