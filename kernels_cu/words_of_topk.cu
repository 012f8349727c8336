// Words of the k best-scored blocks of each row: ties go to the lower block, -inf and NaN are never chosen.
//
// One warp a row. The k-th highest score is found bit by bit, from the top, on keys that order as scores do.
#include <lists/params.cuh>
#include <lists/warps.cuh>
#include <tile/math.cuh>

struct TopkParams {
    ListParams lists;
    Operand scores;   // (batch, head, block row, block column)
    Operand allowed;  // bool, broadcast by strides; not given: all
    Operand include;  // chosen before all others where allowed; not given: none
    i32 k;
};

// What a score is compared by: 0 for what is not chosen, kLeast for -inf and NaN, and above them all others in order.
template <class Key>
struct KeyOf {};

template <>
struct KeyOf<u32> {
    static constexpr u32 kLeast = 1;
    __device__ static __forceinline__ u32 of(const Operand& operand, const u8* address) {
        const float score = load<float>(operand, address);
        if (!(score > -infinity<float>())) return kLeast;
        const u32 bits = bits_of_float(score == 0 ? 0.0f : score);  // -0 is no lower than 0
        return bits >> 31 ? ~bits : bits | 1u << 31;
    }
};

template <>
struct KeyOf<u64> {
    static constexpr u64 kLeast = 1;
    __device__ static __forceinline__ u64 of(const Operand& operand, const u8* address) {
        const bool integer = operand.dtype == kInt32 || operand.dtype == kInt64;
        const double score = integer ? static_cast<double>(load_index(operand, address)) : load<double>(operand, address);
        if (!(score > -infinity<double>())) return kLeast;
        const u64 bits = bits_of_double(score == 0 ? 0.0 : score);
        return bits >> 63 ? ~bits : bits | 1ull << 63;
    }
};

// Blocks of a row that must be chosen, or those that may be.
template <class Key>
struct Candidates {
    const TopkParams& params;
    const ListRow& row;
    bool forced;

    __device__ __forceinline__ Key key(i32 column) const {
        if (column >= params.lists.own.columns) return 0;
        if (given(params.allowed) && !load_bool(params.allowed, row.of(params.allowed), column)) return 0;
        const bool included = given(params.include) && load_bool(params.include, row.of(params.include), column);
        if (included != forced) return 0;
        const Key key = KeyOf<Key>::of(params.scores, row.of(params.scores) + column * params.scores.column);
        return key == KeyOf<Key>::kLeast && !forced ? 0 : key;
    }

    // How many of them agree with `prefix` from bit `bit` on.
    __device__ __forceinline__ i32 count(Key prefix, int bit) const {
        i32 own = 0;
        for (i32 column = lane_index(); column < params.lists.own.columns; column += 32) {
            const Key candidate = key(column);
            own += candidate != 0 && candidate >> bit == prefix >> bit;
        }
        return sum_of_warp(own);
    }

    __device__ __forceinline__ i32 count() const {
        i32 own = 0;
        for (i32 column = lane_index(); column < params.lists.own.columns; column += 32) own += key(column) != 0;
        return sum_of_warp(own);
    }
};

// The best: keys above `last`, and of those equal to it the first `ties`.
template <class Key>
struct Best {
    Key last;
    i32 ties;
    i32 chosen;

    __device__ __forceinline__ Best(const Candidates<Key>& candidates, i32 k) : last(0), ties(0), chosen(0) {
        const i32 there = candidates.count();
        chosen = there < k ? there : k;
        if (there <= k) return;
        ties = k;
        for (int bit = 8 * sizeof(Key) - 1; bit >= 0; --bit) {
            const Key higher = last | static_cast<Key>(1) << bit;
            const i32 among = candidates.count(higher, bit);
            if (among >= ties) last = higher;
            else ties -= among;
        }
    }
};

template <class Key, int kThreads>
__device__ __forceinline__ void words_of_topk(const TopkParams& params) {
    const ListSide& own = params.lists.own;
    for_each_by_warp<kThreads>(all_rows(params.lists), [&](i64 flat) {
        const ListRow row(params.lists, flat);
        const Candidates<Key> forced = {params, row, true}, free = {params, row, false};
        const Best<Key> first(forced, given(params.include) ? params.k : 0), rest(free, params.k - first.chosen);
        i32 first_ties = 0, rest_ties = 0;
        for (i32 n = 0; n < own.row_words; ++n) {
            const i32 column = 32 * n + lane_index();
            const Key must = given(params.include) ? forced.key(column) : 0, may = free.key(column);
            const u32 first_equal = warp_ballot(must != 0 && must == first.last);
            const u32 rest_equal = warp_ballot(may != 0 && may == rest.last);
            const bool in_first = must > first.last || (must == first.last && first_ties + rank_of_lane(first_equal) < first.ties);
            const bool in_rest = may > rest.last || (may == rest.last && rest_ties + rank_of_lane(rest_equal) < rest.ties);
            const u32 word = warp_ballot(in_first || in_rest);
            if (lane_index() == 0) own.full_words[flat * own.row_words + n] = word;
            first_ties += population_count(first_equal);
            rest_ties += population_count(rest_equal);
        }
    });
}
