// How much attention blocks of queries pay to blocks of keys: softmax weights, summed over a block's keys and averaged over
// those of its rows that see any key. The forward before has left each row's statistics, so that columns need no order.
//
// A block of threads owns a piece of the result: one cell, walked tile by tile, or the small ones that a tile has room for.
#include <schedule/band.cuh>
#include <score/features.cuh>
#include <tile/row_lanes.cuh>
#include <tile/visibility.cuh>

struct BlockMassParams {
    AttentionParams attention;  // a chunk is a piece's columns
    Operand mass;               // rows and columns are blocks
    i32 block_q, block_k;
};

template <class Tiles, class Hooks>
class MassPiece {
    using Acc = typename Tiles::Acc;
    using Schedule = BandSchedule<Tiles::kWalk>;
    using Tile = typename Schedule::Tile;

public:
    __device__ MassPiece(const BlockMassParams& params, const Work& work, const Sequence& sequence, ProductShared<Tiles>& shared)
        : mass_(params), params_(params.attention), work_(work), sequence_(sequence), shared_(shared),
          hooks_(params.attention, work, work.head, sequence),
          rows_(max(params.block_q, Tiles::kOwner)), columns_(max(params.block_k, Tiles::kWalk)) {}

    __device__ void run() {
        const i32 first = work_.tile * rows_, end = min(first + rows_, sequence_.q.length);
        for (i32 row = first; row < end; row += Tiles::kOwner) add_rows(row);
        finish();
    }

private:
    __device__ __forceinline__ void add_rows(i32 first_row) {
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) load_statistics(r, first_row + Tiles::local_row(r));
        typename Schedule::Shared none;
        Schedule schedule(params_.lists, work_, work_.head, params_.q_heads, query_band(params_, sequence_), first_row,
                          Tiles::kOwner, none);
        const i32 first = work_.chunk * columns_;
        for (i32 column = first; column < first + columns_; column += Tiles::kWalk) {
            Tile tile;
            if (!schedule.fetch(tile, column)) continue;
            if (Hooks::kHides || schedule.partial(tile)) visit<true>(schedule, tile, first_row);
            else visit<false>(schedule, tile, first_row);
        }
    }

    // P = exp2(s - reference) * inverse_sum, which is 0 for rows that see no key and for those beyond the length.
    __device__ __forceinline__ void load_statistics(int r, i32 row) {
        reference_[r] = inverse_sum_[r] = 0;
        if (row >= sequence_.q.length) return;
        const u8* stats = base(params_.stats, work_, work_.head) + row * params_.stats.row;
        reference_[r] = load<Acc>(params_.stats, stats);
        inverse_sum_[r] = load<Acc>(params_.stats, stats + params_.stats.column);
        if (inverse_sum_[r] != 0) ++seeing_;
    }

    template <bool kMasked>
    __device__ __forceinline__ void visit(const Schedule& schedule, const Tile& tile, i32 first_row) {
        const Place<Tiles, Tile, false> place = {first_row, tile};
        const i32 kv_head = work_.head / (params_.q_heads / params_.kv_heads);
        Fragment<Tiles> scores;
        product<Tiles>(scores, shared_, rows(params_.q, work_, work_.head, sequence_.q), first_row,
                       rows(params_.k, work_, kv_head, sequence_.k), tile, params_.head_dim);
        Bits<Tiles> visible = kMasked ? visible_bits<Tiles>(schedule, tile, place) : equal_bits<Tiles>(true);
        hooks_.hide(visible, place);
        hooks_.scores(scores, visible, place);
#pragma unroll
        for (int c = 0; c < Tiles::kColumns; ++c) {
            Acc part = 0;
#pragma unroll
            for (int r = 0; r < Tiles::kRows; ++r) {
                const Acc weight = power_of_two(scores.at[r][c] - reference_[r]) * inverse_sum_[r];
                // The score of a row beyond the length is anything times 0: NaN, even.
                part += inverse_sum_[r] != 0 && (!kMasked || visible(r, c)) ? weight : 0;
            }
            sums_[c].add(part);
        }
    }

    // Sum over the lanes of a row by shuffles, and over rows in shared memory that weights have in other kernels.
    __device__ __forceinline__ void finish() {
        auto& parts = shared_.weights;
        static_assert(Tiles::kThreadRows <= Tiles::kOwner && Tiles::kColumns < Tiles::kWalk, "parts fit in");
        block_sync();  // parts of the piece before are still being read
#pragma unroll
        for (int c = 0; c < Tiles::kColumns; ++c) {
            const Acc sum = row_sum<Tiles>(sums_[c].value());
            if (Tiles::thread_lane() == 0) parts[Tiles::thread_row()][c] = sum;
        }
        if (Tiles::thread_lane() == 0) parts[Tiles::thread_row()][Tiles::kColumns] = seeing_;
        block_sync();
        const i32 high = rows_ / mass_.block_q, wide = columns_ / mass_.block_k;
        for (i32 n = thread_index(); n < high * wide; n += Tiles::kThreads) store_cell(n / wide, high, n % wide, wide);
    }

    // Cell (i, j) of the (high, wide) of the piece.
    __device__ __forceinline__ void store_cell(i32 i, i32 high, i32 j, i32 wide) {
        static_assert(kSegment % Tiles::kRows == 0 && kSegment % Tiles::kLanes == 0, "a thread's parts lie in one cell each");
        const i32 row = work_.tile * high + i, column = work_.chunk * wide + j;
        if (row >= ceil_div(params_.q_len, mass_.block_q) || column >= ceil_div(params_.kv_len, mass_.block_k)) return;
        const i32 thread_rows = Tiles::kThreadRows / high, columns = Tiles::kColumns / wide;
        double sum = 0, seeing = 0;
        for (i32 t = i * thread_rows; t < (i + 1) * thread_rows; ++t) {
            for (i32 c = j * columns; c < (j + 1) * columns; ++c) sum += shared_.weights[t][c];
            seeing += shared_.weights[t][Tiles::kColumns];
        }
        store(mass_.mass, base(mass_.mass, work_, work_.head) + row * mass_.mass.row + column * mass_.mass.column,
              static_cast<Acc>(seeing == 0 ? 0 : sum / seeing));
    }

    const BlockMassParams& mass_;
    const AttentionParams& params_;
    const Work& work_;
    const Sequence sequence_;
    ProductShared<Tiles>& shared_;
    Hooks hooks_;
    const i32 rows_, columns_;
    Acc reference_[Tiles::kRows], inverse_sum_[Tiles::kRows];
    CompensatedSum<Acc> sums_[Tiles::kColumns] = {};
    i32 seeing_ = 0;  // rows of the thread that see a key, the same in all lanes that share them
};

template <class Tiles, class Hooks>
__device__ __forceinline__ void block_mass(const BlockMassParams& params) {
    auto& shared = shared_memory<ProductShared<Tiles>>();
    const AttentionParams& attention = params.attention;
    StaticScheduler scheduler(attention, ceil_div(attention.q_len, max(params.block_q, Tiles::kOwner)), attention.q_heads);
    for (Work work; scheduler.next(work);) {
        const Sequence own = sequence(attention, work);
        MassPiece<Tiles, Hooks>(params, work, own, shared).run();
    }
}
