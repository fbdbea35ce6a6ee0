// Structs side by side in one argument of a kernel, one for each layer that the launch serves.
#pragma once

// Of which entry block `idx` is: each before it takes `blocks(entry)`, which `idx` loses. The
// argument must be __grid_constant__: it is then read where it lies, by any index, not copied.
template <class Entry, int N, class Blocks>
__forceinline__ __device__ int entry_of(const Entry (&entries)[N], int& idx, Blocks blocks) {
    int entry = 0;
    for (int n; entry < N - 1 && idx >= (n = blocks(entries[entry])); ++entry) idx -= n;
    return entry;
}
