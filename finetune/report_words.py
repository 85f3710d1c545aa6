"""Simplified Chinese for the headings, captions and standing sentences of a report.

Keys are the English sentences as they stand in the template and in `finetune.report_limits`, with
the same `{names}`. Words of users (titles, reasons, names of columns) are not translated.
"""

from __future__ import annotations

from finetune.backtest_words import BACKTEST_FIGURE_WORDS, BACKTEST_WORDS
from finetune.data_words import DATA_FIGURE_WORDS, DATA_WORDS

WORDS: dict[str, str] = {
    **BACKTEST_WORDS,
    **DATA_WORDS,
    # head
    "Print": "打印",
    "Model report": "模型报告",
    "channel": "渠道",
    "package": "模型包",
    "made": "生成时间",
    "Chosen recipe": "所选方案",
    "Label 1, called bad here": "标签 1（本报告称“坏”）的含义",
    "95 % interval": "95% 区间",
    "KS against {name}": "KS 与 {name} 之差",
    "Approved at the same bad rate": "坏账率相同时的通过率",
    "instead of {share} with {name}": "{name} 为 {share}",
    "Customers judged on": "评估客户数",
    "Customers": "客户数",
    "{bad} bads": "其中坏客户 {bad}",
    "Bad rate": "坏账率",
    "Computed on": "计算所用样本：",
    "{n} limits to know before using these numbers": "使用这些数字之前须知的 {n} 项局限",
    "{name}: n = {n}, {bad} bads, bad rate {rate} (95 % interval {ci})": "{name}：n = {n}，坏客户 {bad}，坏账率 {rate}（95% 区间 {ci}）",
    "; decided {start} to {end}": "；决策日期 {start} 至 {end}",
    ".": "。",
    # sample
    "Sample": "样本",
    "{n} customers ({share}) had no known event at the moment of decision (thin files).": "{n} 位客户（{share}）在决策时没有任何已知事件（薄档案）。",
    "{n} further rows have no label yet.": "另有 {n} 行尚无标签。",
    "Data windows": "数据窗口",
    "window": "窗口",
    "from": "起",
    "to": "止",
    "Rows left out": "剔除的行",
    "reason": "原因",
    "rows": "行数",
    "No row was left out.": "没有剔除任何行。",
    "Columns of the sample file that no schema declares, ignored": "样本文件中未声明、已忽略的列",
    "Customers and bad rate by month of decision, with 95 % Wilson intervals; development sample.": "各决策月份的客户数与坏账率（95% Wilson 区间）；开发样本。",
    "All decisions fall into one month ({month}), so there is no course over time to show.": "所有决策都在同一个月（{month}），因此没有时间走势可展示。",
    "There is no course over time to show.": "没有时间走势可展示。",
    "Channels": "渠道",
    "bads": "坏客户",
    "bad rate": "坏账率",
    # labels and refused applicants
    "What these labels can show": "这些标签能说明什么",
    "measured on": "衡量样本",
    "smallest KS difference": "可辨别的最小 KS 差",
    "smallest AUC difference": "可辨别的最小 AUC 差",
    "these labels, by cross-validation": "这些标签（交叉验证）",
    "the test file": "测试文件",
    "with {times} times as many labels": "标签增至 {times} 倍时",
    "Expected before training: half-width of the 95 % interval if the true AUC is {auc} (KS {ks}), "
    "and the smallest difference of two models that is found with 80 % power when their scores "
    "correlate by {r}. Smaller differences cannot be told apart.": "训练前的预期：若真实 AUC 为 {auc}（KS {ks}），95% 区间的半宽，以及当两个模型评分的相关系数为 {r} 时以 80% 功效可辨别的最小差异。更小的差异无法辨别。",
    "With refused applicants (reject inference)": "纳入被拒申请人（拒绝推断）",
    "Recipe {recipe} was also learnt with {n} refused applicants ({method}, odds factor {factor}). "
    "They were given a bad rate of {rate}; the {labelled} labelled customers have {own}. The "
    "package of this report is the plain model; the other one lies beside it.": "方案 {recipe} 另外纳入 {n} 位被拒申请人进行学习（{method}，几率系数 {factor}）。推断其坏账率为 {rate}；{labelled} 位有标签客户的坏账率为 {own}。本报告的模型包为未纳入者；另一个模型包位于其旁。",
    "model": "模型",
    "without the refused": "未纳入被拒者",
    "with the refused": "纳入被拒者",
    "Out-of-fold figures on {n} labelled customers with 95 % bootstrap intervals. Refused applicants "
    "have no outcome: no figure here can say whether the inference is right for them.": "{n} 位有标签客户的折外指标及 95% 自助法区间。被拒申请人没有结果：此处任何数字都不能说明推断对他们是否正确。",
    # bad definition
    "Bad definition": "坏的定义",
    "event store version": "事件库版本",
    "events known before {until}": "{until} 之前已知的事件",
    "By month {month} (95 % interval {low} to {high}), {share} of the bads of month {final} have "
    "shown.": "到第 {month} 个月（95% 区间 {low} 至 {high}），第 {final} 个月时的坏客户已有 {share} 显现。",
    "The curve still rises: {recent} of those bads came in the last quarter of the months. The true "
    "maturity lies later.": "曲线仍在上升：其中 {recent} 的坏客户出现在最后四分之一的月份。真正的成熟期更晚。",
    "Customers followed": "跟踪的客户数",
    "Samples followed": "跟踪的样本数",
    "Ever bad": "曾经变坏",
    "within the months known": "在已知月份内",
    "Bad by month {month}": "到第 {month} 个月变坏的占比",
    "Windows of the sample file": "样本文件的窗口",
    "month of decision": "决策月份",
    "months since the start": "距起点月数",
    "months watched": "观察月数",
    "bads shown by then": "届时已显现的坏客户",
    "mature": "已成熟",
    "yes": "是",
    "not yet": "尚未",
    "Bads shown by then: of the bads that the curve below still expects between the decision and "
    "month {final}, the share that comes within the months watched.": "届时已显现的坏客户：下方曲线预期从决策到第 {final} 个月还会出现的坏客户中，在观察月数内出现的占比。",
    "Vintages": "账龄分析",
    "Share ever bad by month since the start, one line a cohort; a line ends where not all of its "
    "cohort is known.": "自起点起各月曾经变坏的占比，每条线为一个批次；批次未全部已知处线即终止。",
    "cohort": "批次",
    "month {m}": "第 {m} 个月",
    "Maturity": "成熟期",
    "Share ever bad over all cohorts (Kaplan–Meier) with its 95 % bootstrap band; the dotted line "
    "marks the month from which a window is mature.": "所有批次曾经变坏的占比（Kaplan–Meier）及 95% 自助法区间带；点线标出窗口成熟的月份。",
    "Roll rates": "滚动率",
    "Of the customers in a state at the end of a month, the share (%) in each state one month later.": "月末处于某状态的客户中，一个月后处于各状态的占比（%）。",
    "state": "状态",
    "gets worse": "变差",
    "stays": "不变",
    "gets better": "好转",
    "From state {state} on, more customers get worse than better: a bad definition from there "
    "separates.": "从状态 {state} 起，变差的客户多于好转的客户：以此为坏的定义具有区分力。",
    "In no state do more customers get worse than better.": "没有任何状态中变差的客户多于好转的客户。",
    # ladder
    "Recipes compared": "方案比较",
    "Every recipe was judged on the same folds; the choice rests on log-loss alone.": "所有方案在相同的折上评估；选择仅依据对数损失。",
    "Cross-validation": "交叉验证",
    "AUC and KS of every recipe with 95 % bootstrap intervals; the chosen one is coloured.": "各方案的 AUC 与 KS 及 95% 自助法区间；所选方案以彩色标出。",
    "cross-validation": "交叉验证",
    "test sample": "测试样本",
    "recipe": "方案",
    "log-loss": "对数损失",
    "chosen": "已选",
    "skipped": "已跳过",
    "failed": "失败",
    "Small figures under log-loss: paired difference to the best recipe ± one standard error; "
    "elsewhere 95 % bootstrap intervals.": "对数损失下方小字：与最佳方案的配对差 ± 一个标准误；其余为 95% 自助法区间。",
    "No recipes were compared: the recipe was given, not chosen.": "未比较方案：方案由使用者指定。",
    # quality
    "Quality": "模型效果",
    "There are no labelled scores to judge the model on.": "没有带标签的评分可用于评估模型。",
    "Everything in this section was computed on": "本节所有数字的计算样本：",
    "These decisions lie after those the model learned from (out of time).": "这些决策晚于模型学习所用的决策（跨时间验证）。",
    "measure": "指标",
    "Log-loss": "对数损失",
    "Brier score": "Brier 分数",
    "Calibration error (ECE)": "校准误差（ECE）",
    "KS curve: bads and goods found when customers are refused from the riskiest down. "
    "The greatest distance is KS, at {share} refused.": "KS 曲线：从风险最高的客户起依次拒绝，所覆盖的坏客户与好客户。"
    "最大差距即 KS，位于拒绝 {share} 处。",
    "ROC curve. The area under it is AUC.": "ROC 曲线，曲线下面积即 AUC。",
    "Calibration in {n} bands of equal size: where the line follows the dashes, a score of 10 % "
    "means 10 % bads. Bars are 95 % Wilson intervals.": "{n} 个等量分组的校准：折线贴近虚线时，10% 的评分即意味着 10% 的坏客户。"
    "误差线为 95% Wilson 区间。",
    "Scores of goods and of bads, each summing to 100 %.": "好客户与坏客户的评分分布，各自合计 100%。",
    "Lift by band": "分组提升度",
    "Realised bad rate by band of equal size, riskiest first, with 95 % Wilson intervals.": "按风险从高到低等量分组的实际坏账率及 95% Wilson 区间。",
    "band": "组",
    "from score": "评分下限",
    "lift": "提升度",
    "bads captured": "累计捕获坏客户",
    "Only one class of labels is present, so KS, AUC, calibration and lift do not exist.": "只有一类标签，因此不存在 KS、AUC、校准与提升度。",
    "Against the baseline": "与基准模型比较",
    "{recipe} ranks better than {name}: the interval of the AUC difference lies above zero.": "{recipe} 的排序优于 {name}：AUC 差的区间在零以上。",
    "{recipe} ranks worse than {name}: the interval of the AUC difference lies below zero.": "{recipe} 的排序劣于 {name}：AUC 差的区间在零以下。",
    "No proven difference in ranking between {recipe} and {name}: the interval of the AUC "
    "difference holds zero.": "{recipe} 与 {name} 的排序差异未得到证实：AUC 差的区间包含零。",
    "paired difference": "配对差",
    "approval rate": "通过率",
    "bad rate, {name}": "{name} 坏账率",
    "at the bad rate of {other}, {name} approves": "坏账率与 {other} 相同时 {name} 的通过率",
    "Approval gained where {name} approves {share}: {gain} points, 95 % interval {low} to {high}.": "在 {name} 通过 {share} 处增加的通过率：{gain} 个百分点，95% 区间 {low} 至 {high}。",
    "Bad rate among the approved at every approval rate: lower is better.": "各通过率下获批客户的坏账率：越低越好。",
    "There is no other model to compare with on these rows.": "这些样本上没有其他模型可供比较。",
    "Stability by month": "逐月稳定性",
    "KS by month with 95 % bootstrap intervals (left), PSI of the score (right).": "逐月 KS 及 95% 自助法区间（左轴），评分 PSI（右轴）。",
    "month": "月份",
    "PSI against: {name}. Below 0.10 is stable, 0.10 to 0.25 moved, above that changed. "
    "KS is left out for months with fewer than ten bads or goods.": "PSI 的基准：{name}。低于 0.10 为稳定，0.10 至 0.25 为有所变动，更高为已改变。"
    "坏客户或好客户不足十个的月份不列 KS。",
    "The evaluation covers one month, so stability over time cannot be judged.": "评估样本只覆盖一个月，无法判断时间稳定性。",
    # forecasts
    "Forecasts": "预测",
    "Forecasts are made from history alone, without a single label of this sample; each is named "
    "after what it foresees.": "预测仅来自历史，未使用本样本的任何标签；每项以其预见的事件命名。",
    "How well each forecast alone ranks the label, with 95 % DeLong intervals; left of 0.5 it "
    "falls where the label rises.": "每项预测单独对标签的排序能力及 95% DeLong 区间；低于 0.5 表示与标签方向相反。",
    "forecast": "预测",
    "mean forecast": "预测均值",
    "AUC on the label": "对标签的 AUC",
    "came true": "实际发生",
    "mean forecast on those known": "已知结果部分的预测均值",
    "This model has no forecasts: the schema declares no outcomes, or no events lie behind it.": "本模型没有预测：数据结构未声明结果，或没有事件数据。",
    # variables
    "Variables": "变量",
    "The strongest single columns of the development sample ({n} customers, {bad} bads).": "开发样本（{n} 位客户，{bad} 个坏客户）中最强的单个变量。",
    "variable": "变量",
    "kind": "类别",
    "aggregate": "聚合",
    "profile": "档案",
    "context": "申请信息",
    "embedding": "表征",
    "missing": "缺失",
    "No analysis of single variables was made.": "未做单变量分析。",
    # reasons
    "Reasons": "评分原因",
    "How much each group of inputs moves the score on average, when it is replaced by its typical "
    "value.": "将每组输入替换为其典型值时，评分平均变动多少。",
    "Mean absolute effect on the log-odds, as a share of all groups.": "对数几率的平均绝对影响，占所有组的份额。",
    "No importance of reason groups was computed.": "未计算原因组的重要性。",
    "Three customers": "三位客户",
    "Example customers": "客户示例",
    "approved": "通过",
    "middle": "居中",
    "refused": "拒绝",
    "probability of bad": "坏的概率",
    "{n} points": "{n} 分",
    "decided {day}": "决策日期 {day}",
    "raises risk": "提高风险",
    "lowers risk": "降低风险",
    "No single reason stands out.": "没有突出的单项原因。",
    "Small figures are effects in log-odds: +0.69 doubles the odds of bad.": "小字为对数几率影响：+0.69 使坏的几率翻倍。",
    # lineage
    "Limits": "局限",
    "No particular limit was found.": "未发现特别的局限。",
    "Lineage": "溯源",
    "store version": "事件库版本",
    "backbone fingerprint": "骨干模型指纹",
    "tokenizer fingerprint": "分词器指纹",
    "schema fingerprint": "数据结构指纹",
    "code version": "代码版本",
    "seeds": "随机种子",
    "seed": "随机种子",
    "No lineage was recorded.": "未记录溯源信息。",
    "Intervals: {level} %, bootstrap over customers with {n} resamples (seed {seed}), of KS corrected for its bias; rates by "
    "Wilson's score interval. All numbers stand in the JSON file beside this page.": "区间：{level}%，对客户做 {n} 次自助重抽样（种子 {seed}），KS 区间经偏差校正；比率用 Wilson 区间。"
    "所有数字均见本页旁的 JSON 文件。",
    "Charts need JavaScript; the tables hold the main numbers without it.": "图表需要 JavaScript；没有它时，表格仍给出主要数字。",
    # derived limits
    "No labelled sample was held back and no out-of-fold scores are shown: this report does not "
    "prove the model's quality.": "没有留出带标签的样本，也没有折外评分：本报告不能证明模型效果。",
    "There is no separate test sample: quality was measured on out-of-fold predictions of the "
    "development sample, by models trained on the other folds.": "没有单独的测试样本：效果以开发样本的折外预测衡量，由其余折训练的模型给出。",
    "The evaluation is not out of time: customers were decided on in the same period as those the "
    "model learned from. Expect some loss on later months.": "评估不是跨时间的：客户的决策时间与模型学习所用的处于同一时期。后续月份应预期有所下降。",
    "The evaluation sample holds one class only ({n} customers, {bad} bads): KS and AUC do not "
    "exist there.": "评估样本只有一类标签（{n} 位客户，{bad} 个坏客户）：不存在 KS 与 AUC。",
    "Only {bad} bads among {n} customers: the 95 % interval of KS is {width} points wide. "
    "Differences smaller than that mean nothing.": "{n} 位客户中只有 {bad} 个坏客户：KS 的 95% 区间宽达 {width} 个百分点，"
    "小于此的差异没有意义。",
    "The model was developed on {bad} bads; with fewer than ten, only recipes that learn almost "
    "nothing from labels are safe.": "模型仅用 {bad} 个坏客户开发；少于十个时，只有几乎不从标签学习的方案才安全。",
    "Labels exist for approved customers only: refused applicants may behave differently, and the "
    "model has not seen them.": "只有获批客户有标签：被拒申请人可能表现不同，模型未见过他们。",
    "{share} % of customers had no known event at the moment of decision (thin files); their "
    "scores rest on profile and context alone.": "{share}% 的客户在决策时没有任何已知事件（薄档案）；其评分仅依据档案与申请信息。",
    "{n} rows carry no label yet and took no part in training or metrics.": "{n} 行尚无标签，未参与训练与指标计算。",
    "{n} rows were left out before anything was computed; section 1 lists why.": "计算前剔除了 {n} 行；原因见第 1 节。",
    "The score moved in {months} (PSI of {bound} or more): look at the population before using the "
    "model there.": "评分在 {months} 发生偏移（PSI 达 {bound} 或以上）：在该处使用模型前请先检查人群。",
}

FIGURE_WORDS: dict[str, str] = {
    **BACKTEST_FIGURE_WORDS,
    **DATA_FIGURE_WORDS,
    "month of decision": "决策月份",
    "customers": "客户数",
    "bad rate": "坏账率",
    "cross-validation": "交叉验证",
    "test sample": "测试样本",
    "bads found": "坏客户",
    "goods found": "好客户",
    "share of customers, riskiest first": "客户占比（风险从高到低）",
    "share found": "覆盖占比",
    "chance": "随机",
    "chosen model": "所选模型",
    "goods refused": "被拒的好客户",
    "bads refused": "被拒的坏客户",
    "perfect": "理想",
    "realised": "实际",
    "mean score": "评分均值",
    "realised bad rate": "实际坏账率",
    "whole sample": "全样本",
    "band, riskiest first": "组（风险从高到低）",
    "goods": "好客户",
    "bads": "坏客户",
    "score: probability of bad": "评分：坏的概率",
    "share of each group": "占各自总数",
    "approval rate": "通过率",
    "bad rate among approved": "获批客户坏账率",
    "PSI of the score": "评分 PSI",
    "AUC of the forecast alone against the label": "预测单独对标签的 AUC",
    "share of all effects": "占全部影响",
    "month since the start": "自起点起的月份",
    "share ever bad": "曾经变坏的占比",
    "share asked for": "所求占比",
    "mature from": "成熟起始",
    "95 % interval": "95% 区间",
    "roll rates": "滚动率",
    "state": "状态",
    "state one month later": "一个月后的状态",
}
