#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "engine/fake_runner.h"

namespace xgen::engine {
namespace {

constexpr int kVocab = 50;

SchedulerOptions options_with(int blocks, int block_size = 4) {
  SchedulerOptions o;
  o.num_blocks = blocks;
  o.block_size = block_size;
  o.max_model_len = blocks * block_size;
  o.max_num_seqs = 8;
  o.max_num_batched_tokens = 16;
  o.max_score_rows = 4;
  return o;
}

std::vector<TokenId> numbers(int count, int first = 0) {
  std::vector<TokenId> out;
  for (int i = 0; i < count; ++i) out.push_back((first + i) % kVocab);
  return out;
}

// The tokens that a choice must get, computed from nothing but its prompt.
std::vector<TokenId> expected_output(const Request& r, int choice) {
  std::vector<TokenId> tokens = r.prompt;
  std::vector<TokenId> output;
  while (static_cast<int>(output.size()) < r.max_tokens) {
    const TokenId token = fake_token(fake_hash(tokens), choice, kVocab);
    output.push_back(token);
    tokens.push_back(token);
    if (std::count(r.eos_ids.begin(), r.eos_ids.end(), token) ||
        std::count(r.stop_ids.begin(), r.stop_ids.end(), token))
      break;
  }
  return output;
}

// Drives a scheduler with the fake model and checks everything after every step.
struct Bench {
  explicit Bench(const SchedulerOptions& options)
      : scheduler(options), runner(options.num_blocks, options.block_size, kVocab) {}

  struct Seen {
    std::map<int, std::vector<TokenId>> tokens;  // by choice
    std::map<int, int> ends;
    std::vector<std::pair<int, float>> scores;  // position, logprob
    int prompt_done = 0;
  };

  Request& add(std::vector<TokenId> prompt, int max_tokens) {
    requests.push_back(std::make_unique<Request>());
    Request& r = *requests.back();
    r.id = ++last_id;
    r.prompt = std::move(prompt);
    r.max_tokens = max_tokens;
    return r;
  }
  void submit(Request& r) {
    ASSERT_TRUE(scheduler.check(r).ok());
    scheduler.submit(r);
  }
  void step() {
    const StepPlan& plan = scheduler.plan();
    ASSERT_FALSE(plan.items.empty()) << "work is there, but nothing is planned";
    ASSERT_LE(plan.rows, scheduler.options().max_num_batched_tokens);
    ASSERT_LE(scheduler.num_running(), static_cast<std::size_t>(scheduler.options().max_num_seqs));
    int rows = 0;
    int scores = 0;
    for (const ScheduledSequence& item : plan.items) {
      rows += item.rows;
      scores += item.score_end - item.score_begin;
    }
    ASSERT_EQ(rows, plan.rows);
    ASSERT_LE(scores, scheduler.options().max_score_rows);
    last_plan = plan;
    runner.run(plan, result);
    for (const Update& u : scheduler.commit(result)) {
      Request& r = *u.sequence->request;
      Seen& s = seen[r.id];
      ASSERT_EQ(s.ends[u.sequence->choice], 0) << "an update after the end";
      if (u.result->error) {
        failed.push_back(r.id);
        scheduler.cancel(r);
        continue;
      }
      for (std::size_t i = 0; i < u.result->prompt_scores.size(); ++i) {
        s.scores.emplace_back(u.score_begin + static_cast<int>(i), u.result->prompt_scores[i].logprob);
      }
      if (u.prompt_done && u.sequence->choice == 0) ++s.prompt_done;
      if (u.result->token >= 0) s.tokens[u.sequence->choice].push_back(u.result->token);
      if (u.finished) ++s.ends[u.sequence->choice];
    }
    ASSERT_EQ(scheduler.check_integrity(), "");
  }
  void run_all(int limit = 100000) {
    for (int i = 0; scheduler.has_work(); ++i) {
      ASSERT_LT(i, limit) << "it does not come to an end";
      step();
      if (testing::Test::HasFatalFailure()) return;
    }
  }
  void expect_right(const Request& r) {
    Seen& s = seen[r.id];
    if (r.max_tokens == 0) {
      EXPECT_EQ(s.ends[0], 1);
    } else {
      for (int choice = 0; choice < r.n; ++choice) {
        EXPECT_EQ(s.tokens[choice], expected_output(r, choice)) << "request " << r.id << " choice " << choice;
        EXPECT_EQ(s.ends[choice], 1);
      }
    }
    EXPECT_EQ(s.prompt_done, 1);
    if (!r.prompt_logprobs) return;
    ASSERT_EQ(s.scores.size(), r.prompt.size() - 1);
    for (std::size_t i = 0; i < s.scores.size(); ++i) {
      EXPECT_EQ(s.scores[i].first, static_cast<int>(i)) << "each once, in order";
      EXPECT_EQ(s.scores[i].second, fake_logprob(fake_hash(std::span(r.prompt).first(i + 1))));
    }
  }

  Scheduler scheduler;
  FakeRunner runner;
  StepResult result;
  StepPlan last_plan;
  std::vector<std::unique_ptr<Request>> requests;
  std::map<RequestId, Seen> seen;
  std::vector<RequestId> failed;
  RequestId last_id = 0;
};

TEST(Scheduler, CutsPromptsIntoChunksAndDecodesOneRowAtATime) {
  Bench b(options_with(32));
  Request& r = b.add(numbers(35), 5);
  b.submit(r);
  for (int rows : {16, 16, 3, 1, 1, 1, 1}) {
    b.step();
    EXPECT_EQ(b.last_plan.rows, rows);
  }
  EXPECT_FALSE(b.scheduler.has_work());
  b.expect_right(r);
}

TEST(Scheduler, DecodesGoBeforePrompts) {
  Bench b(options_with(64));
  Request& first = b.add(numbers(4), 20);
  b.submit(first);
  b.step();
  Request& second = b.add(numbers(60, 9), 2);
  b.submit(second);
  b.step();
  ASSERT_EQ(b.last_plan.items.size(), 2u);
  EXPECT_EQ(b.last_plan.items[0].sequence->request, &first);
  EXPECT_EQ(b.last_plan.items[0].rows, 1);
  EXPECT_EQ(b.last_plan.items[1].rows, 15) << "the rest of the budget";
  b.run_all();
  b.expect_right(first);
  b.expect_right(second);
}

TEST(Scheduler, FindsAPrefixAgainAndComputesTheRest) {
  Bench b(options_with(32));
  Request& first = b.add(numbers(14), 3);
  b.submit(first);
  b.run_all();
  const auto before = b.runner.rows_computed;
  Request& second = b.add(numbers(14), 3);
  b.submit(second);
  b.run_all();
  EXPECT_EQ(second.cached_tokens, 12);
  EXPECT_EQ(b.runner.rows_computed - before, 2 + 2);
  b.expect_right(second);
  EXPECT_EQ(b.scheduler.stats().prefix_hits, 12u);
  EXPECT_EQ(b.scheduler.stats().prefix_queries, 28u);
}

TEST(Scheduler, OnlyALookUpCountsAsOne) {
  SchedulerOptions options = options_with(32);
  for (const bool caches : {false, true}) {
    options.enable_prefix_caching = caches;
    Bench b(options);
    Request& request = b.add(numbers(14), 3);
    // What the prompt's log-probabilities are wanted of is computed anew.
    request.prompt_logprobs = caches;
    b.submit(request);
    b.run_all();
    EXPECT_EQ(b.scheduler.stats().prefix_queries, 0u);
  }
}

TEST(Scheduler, AFullyCachedPromptStillComputesItsLastToken) {
  Bench b(options_with(32));
  Request& first = b.add(numbers(12), 3);
  b.submit(first);
  b.run_all();
  Request& second = b.add(numbers(12), 3);
  b.submit(second);
  b.run_all();
  EXPECT_EQ(second.cached_tokens, 8);
  b.expect_right(second);
}

TEST(Scheduler, WithoutPrefixCachingOnlyChoicesShare) {
  SchedulerOptions o = options_with(64);
  o.enable_prefix_caching = false;
  Bench b(o);
  Request& first = b.add(numbers(14), 3);
  first.n = 3;
  b.submit(first);
  b.run_all();
  EXPECT_EQ(b.runner.rows_computed, 14 + 2 + 2 * (2 + 2)) << "the prompt's full blocks once";
  Request& second = b.add(numbers(14), 3);
  b.submit(second);
  b.run_all();
  EXPECT_EQ(second.cached_tokens, 0);
  b.expect_right(first);
  b.expect_right(second);
}

TEST(Scheduler, EndsAtStopIdsAndAtMaxTokens) {
  Bench b(options_with(64));
  Request& r = b.add(numbers(6), 40);
  const std::vector<TokenId> all = expected_output(r, 0);
  r.stop_ids = {all[7]};
  b.submit(r);
  b.run_all();
  b.expect_right(r);
  EXPECT_LE(b.seen[r.id].tokens[0].size(), 8u);
}

TEST(Scheduler, ScoresPromptsWithinItsRowLimitAndWithoutThePrefixCache) {
  Bench b(options_with(64));
  Request& first = b.add(numbers(14), 2);
  b.submit(first);
  b.run_all();
  Request& scored = b.add(numbers(14), 2);
  scored.prompt_logprobs = true;
  scored.n = 2;
  b.submit(scored);
  Request& only_prompt = b.add(numbers(30), 0);
  only_prompt.prompt_logprobs = true;
  b.submit(only_prompt);
  b.run_all();
  EXPECT_EQ(scored.cached_tokens, 0);
  b.expect_right(scored);
  b.expect_right(only_prompt);
}

TEST(Scheduler, PreemptsTheLastAndRecomputesIt) {
  SchedulerOptions o = options_with(10);
  o.max_model_len = 40;
  Bench b(o);
  Request& first = b.add(numbers(8), 30);
  Request& second = b.add(numbers(8, 20), 30);
  b.submit(first);
  b.submit(second);
  b.run_all();
  EXPECT_GT(b.scheduler.stats().preemptions, 0u);
  b.expect_right(first);
  b.expect_right(second);
  EXPECT_EQ(b.scheduler.pool().used(), 0);
}

TEST(Scheduler, PriorityDecidesWhoIsAdmittedAndWhoIsPreempted) {
  SchedulerOptions o = options_with(10);
  o.max_num_seqs = 2;
  Bench b(o);
  Request& late = b.add(numbers(8), 25);
  late.priority = 5;
  Request& urgent = b.add(numbers(8, 20), 25);
  urgent.priority = -1;
  Request& middle = b.add(numbers(8, 30), 5);
  b.submit(late);
  b.submit(urgent);
  b.submit(middle);
  b.step();
  ASSERT_EQ(b.last_plan.items.size(), 2u);
  EXPECT_EQ(b.last_plan.items[0].sequence->request, &urgent);
  EXPECT_EQ(b.last_plan.items[1].sequence->request, &middle);
  b.run_all();
  for (Request* r : {&late, &urgent, &middle}) b.expect_right(*r);
}

TEST(Scheduler, CancelFreesBlocksAtOnce) {
  Bench b(options_with(16));
  Request& r = b.add(numbers(20), 20);
  r.n = 3;
  b.submit(r);
  for (int i = 0; i < 4; ++i) b.step();
  EXPECT_GT(b.scheduler.pool().used(), 0);
  b.scheduler.cancel(r);
  EXPECT_EQ(b.scheduler.pool().used(), 0);
  EXPECT_FALSE(b.scheduler.has_work());
  EXPECT_EQ(b.scheduler.check_integrity(), "");
}

TEST(Scheduler, AnErrorEndsOneRequestOnly) {
  Bench b(options_with(64));
  Request& good = b.add(numbers(6, 3), 12);
  Request& bad = b.add(numbers(9), 12);
  const auto stream = expected_output(bad, 0);
  const auto other = expected_output(good, 0);
  const auto poison = std::find_if(stream.begin(), stream.end(),
                                   [&](TokenId t) { return std::find(other.begin(), other.end(), t) == other.end(); });
  ASSERT_NE(poison, stream.end());
  b.runner.fail_on_token = *poison;
  b.submit(good);
  b.submit(bad);
  b.run_all();
  EXPECT_EQ(b.failed, std::vector<RequestId>{bad.id});
  b.expect_right(good);
}

TEST(Scheduler, KnowsWhoseDeadlineHasPassed) {
  Bench b(options_with(16));
  Request& soon = b.add(numbers(4), 4);
  soon.deadline = 10;
  Request& later = b.add(numbers(4), 4);
  later.deadline = 20;
  Request& never = b.add(numbers(4), 4);
  for (Request* r : {&later, &soon, &never}) b.submit(*r);
  EXPECT_EQ(b.scheduler.expired(9.9), nullptr);
  EXPECT_EQ(b.scheduler.expired(10), &soon);
  b.scheduler.cancel(soon);
  EXPECT_EQ(b.scheduler.expired(15), nullptr);
  b.run_all();
  EXPECT_EQ(b.scheduler.expired(1e9), nullptr) << "finished requests have no deadline";
}

TEST(Scheduler, RefusesWhatCanNeverFitWithTheNumbers) {
  SchedulerOptions o = options_with(8);
  o.max_model_len = 30;
  Scheduler scheduler(o);
  Request r;
  r.prompt = numbers(30);
  r.max_tokens = 1;
  Status status = scheduler.check(r);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(status.error().param, "prompt");
  EXPECT_NE(status.error().message.find("30 tokens"), std::string::npos);
  r.max_tokens = 0;
  EXPECT_TRUE(scheduler.check(r).ok());
  r.prompt = numbers(10);
  r.max_tokens = 21;
  status = scheduler.check(r);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().param, "max_tokens");
  EXPECT_NE(status.error().message.find("31"), std::string::npos);
  r.prompt.clear();
  EXPECT_FALSE(scheduler.check(r).ok());
}

TEST(Scheduler, TenThousandWaitingAreServedInOrder) {
  SchedulerOptions o = options_with(64);
  Bench b(o);
  for (int i = 0; i < 10000; ++i) b.submit(b.add(numbers(5, i), 1 + i % 2));
  RequestId last = 0;
  while (b.scheduler.has_work()) {
    const StepPlan& plan = b.scheduler.plan();
    for (const ScheduledSequence& item : plan.items) {
      if (item.sequence->output.empty() && item.first_position == 0) {
        EXPECT_GT(item.sequence->request->id, last);
        last = item.sequence->request->id;
      }
    }
    b.runner.run(plan, b.result);
    b.scheduler.commit(b.result);
  }
  EXPECT_EQ(b.scheduler.pool().used(), 0);
}

// Lends what it is told to, and counts.
struct Lender final : BlockLender {
  int borrow(int blocks) override {
    const int given = std::min(blocks, left);
    left -= given;
    lent += given;
    return given;
  }
  int left = 0;
  int lent = 0;
};

TEST(Scheduler, BorrowsBlocksBeforeItEvictsOrPreempts) {
  Lender lender;
  SchedulerOptions o = options_with(40);
  o.own_blocks = 8;
  o.max_model_len = 32;
  o.lender = &lender;
  Bench b(o);
  EXPECT_EQ(b.scheduler.pool().available(), 8);
  lender.left = 20;
  Request& first = b.add(numbers(20), 8);
  Request& second = b.add(numbers(20, 7), 8);
  b.submit(first);
  b.submit(second);
  b.run_all();
  b.expect_right(first);
  b.expect_right(second);
  EXPECT_GT(lender.lent, 0);
  EXPECT_EQ(b.scheduler.stats().preemptions, 0u);
  // What is cached goes when it is wanted, and no more than was borrowed.
  std::vector<BlockId> gone;
  b.scheduler.give_back(1000, false, gone);
  EXPECT_EQ(static_cast<int>(gone.size()), lender.lent);
  EXPECT_EQ(b.scheduler.pool().available(), 8);
  EXPECT_EQ(b.scheduler.check_integrity(), "");
}

TEST(Scheduler, RunningSequencesYieldOnlyWhenTheyMust) {
  Lender lender;
  SchedulerOptions o = options_with(40);
  o.own_blocks = 8;
  o.max_model_len = 32;
  o.max_num_batched_tokens = 64;
  o.lender = &lender;
  Bench b(o);
  lender.left = 16;
  Request& first = b.add(numbers(24), 8);
  Request& second = b.add(numbers(24, 7), 8);
  b.submit(first);
  b.submit(second);
  b.step();
  ASSERT_EQ(b.scheduler.num_running(), 2u);
  std::vector<BlockId> gone;
  b.scheduler.give_back(lender.lent, false, gone);
  EXPECT_EQ(b.scheduler.num_running(), 2u);
  b.scheduler.give_back(lender.lent - static_cast<int>(gone.size()), true, gone);
  EXPECT_EQ(static_cast<int>(gone.size()), lender.lent);
  EXPECT_EQ(b.scheduler.num_running(), 1u);
  b.runner.discard(gone);
  b.run_all();
  b.expect_right(first);
  b.expect_right(second);
}

// Random mixes of everything, checked after every step: integrity, limits, one end each, and the right tokens whatever
// was preempted, shared, cut or cancelled around them.
TEST(Scheduler, RandomMixes) {
  std::uint64_t preemptions = 0;
  std::uint64_t hits = 0;
  for (unsigned seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&random](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    const int block_size = std::vector{1, 2, 4, 16}[static_cast<std::size_t>(below(4))];
    SchedulerOptions o = options_with(std::max(2, (24 + below(100)) / block_size), block_size);
    o.max_num_seqs = 1 + below(8);
    o.max_num_batched_tokens = 1 + below(24);
    o.max_score_rows = 1 + below(6);
    o.enable_prefix_caching = below(4) != 0;
    Lender lender;
    if (below(2) == 0) {
      o.own_blocks = o.num_blocks;
      o.num_blocks += 1 + below(60);
      o.lender = &lender;
    }
    Bench b(o);
    const int limit = o.max_model_len;
    std::vector<Request*> alive;
    std::vector<Request*> whole;
    int to_come = 40;
    for (int steps = 0; to_come > 0 || b.scheduler.has_work(); ++steps) {
      ASSERT_LT(steps, 20000) << "somebody starves; seed " << seed;
      while (to_come > 0 && below(3) == 0) {
        --to_come;
        const int prompt = 1 + below(std::max(1, limit * 2 / 3));
        Request& r = b.add(numbers(prompt, below(2)), 0);
        if (below(2) == 0) r.prompt.back() = below(kVocab);
        r.max_tokens = below(8) == 0 ? 0 : 1 + below(limit - prompt);
        if (r.max_tokens == 0 && prompt < 2) r.max_tokens = 1;
        r.prompt_logprobs = r.max_tokens == 0 || below(5) == 0;
        r.n = r.max_tokens == 0 || below(3) != 0 ? 1 : 1 + below(5);
        r.priority = below(3);
        if (below(2) == 0) r.stop_ids = {below(kVocab)};
        if (below(2) == 0) r.eos_ids = {below(kVocab)};
        b.submit(r);
        alive.push_back(&r);
      }
      if (!alive.empty() && below(12) == 0) {
        const auto at = static_cast<std::size_t>(below(static_cast<int>(alive.size())));
        b.scheduler.cancel(*alive[at]);
        alive.erase(alive.begin() + static_cast<std::ptrdiff_t>(at));
        ASSERT_EQ(b.scheduler.check_integrity(), "");
      }
      if (below(5) == 0) lender.left = below(20);
      if (o.lender != nullptr && below(6) == 0) {
        std::vector<BlockId> gone;
        b.scheduler.give_back(1 + below(30), below(2) == 0, gone);
        lender.lent -= static_cast<int>(gone.size());
        ASSERT_GE(lender.lent, 0);
        b.runner.discard(gone);
        ASSERT_EQ(b.scheduler.check_integrity(), "");
      }
      if (b.scheduler.has_work()) b.step();
      if (HasFatalFailure()) FAIL() << "seed " << seed;
      if (o.lender != nullptr) {
        ASSERT_EQ(b.scheduler.pool().num_blocks() - b.scheduler.pool().absent(), o.own_blocks + lender.lent);
      }
      std::erase_if(alive, [&](Request* r) {
        if (r->unfinished > 0) return false;
        whole.push_back(r);
        return true;
      });
    }
    for (Request* r : whole) b.expect_right(*r);
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    EXPECT_EQ(b.scheduler.pool().used(), 0);
    preemptions += b.scheduler.stats().preemptions;
    hits += b.scheduler.stats().prefix_hits;
  }
  EXPECT_GT(preemptions, 100u) << "the mixes should lead to preemptions";
  EXPECT_GT(hits, 1000u);
}

}  // namespace
}  // namespace xgen::engine
