// What changes from step to step, read from device memory so that a captured step can be replayed.
// Mirrored byte for byte by src/cuda/step_params.rs, which packs it.
#pragma once

// Rows that an op may run over: the index into StepParams::n_rows and MemberParams::rows.
enum Rows { TOKENS = 0, SEQS = 1, ITEMS = 2 };

// Tokens of a chunk and items of a tile: sums over rows start at a member's first row.
constexpr int CHUNK = 32;
constexpr int ITEM_TILE = 64;

struct alignas(16) MemberParams {
    unsigned long long seed;   // key of its random numbers
    unsigned step;             // training step
    float loss_scale;          // a power of two
    unsigned rows[3][2];       // first and one past the last, by kind of row
    unsigned chunk_start;      // chunks of CHUNK tokens of the members before
    unsigned tile_start;       // tiles of ITEM_TILE items of the members before
    float weights[3];          // of image-anchor, partner-anchor, image-partner
    unsigned stop_partner;     // 1: partners take no gradient
    float mse;                 // weight of the squared error
    unsigned unused[3];
};

// Followed in memory by MemberParams[n_members].
struct alignas(16) StepParams {
    unsigned n_rows[3];
    unsigned n_members;
    __forceinline__ __device__ const MemberParams* members() const {
        return reinterpret_cast<const MemberParams*>(this + 1);
    }
};

struct alignas(16) TokenParams {
    unsigned member;
    unsigned place;   // in its text
    unsigned what;    // role << 20 | item
    unsigned seq;
};

// Rows of the tables that a token takes.
struct alignas(16) TokenIds {
    unsigned word;             // read where slot is 0
    unsigned position;
    unsigned token_type;
    unsigned slot;             // of a soft prompt, from 1 on; 0: a word
};

struct alignas(16) SeqParams {
    int first;         // of its tokens
    int len;           // tokens
    unsigned member;
    unsigned what;     // role << 20 | item
};

// The optimiser's settings of a member for this step.
struct alignas(16) AdamParams {
    float lr;
    float rest1;               // 1 - beta1
    float beta2;
    float rest2;               // 1 - beta2
    float log_beta1;
    float log_beta2;
    float eps;
    float weight_decay;
    float clip_norm;           // infinite: no clipping
    unsigned active;           // 0: it keeps its values and moments
    float head_lr;             // of the linear head
    unsigned unused;
};

// The last member whose start, as `start(member)` tells it, is at most `idx`; members without rows
// share the start of the next one and are skipped.
template <class Start>
__forceinline__ __device__ int find_member(const StepParams* step, unsigned idx, Start start) {
    const MemberParams* members = step->members();
    int low = 0, high = int(step->n_members);
    while (high - low > 1) {
        int mid = (low + high) >> 1;
        if (start(members[mid]) <= idx) low = mid; else high = mid;
    }
    return low;
}

// Calls f(member, start, end) for each member that has rows of the kind `rows` in [first, last).
template <class F>
__forceinline__ __device__ void each_member(const StepParams* step, int rows, int first, int last,
                                            F f) {
    int m = find_member(step, first, [=](const MemberParams& p) { return p.rows[rows][0]; });
    for (; m < int(step->n_members); ++m) {
        int start = step->members()[m].rows[rows][0], end = step->members()[m].rows[rows][1];
        if (start >= last) break;
        if (max(start, first) < end) f(m, start, end);
    }
}
